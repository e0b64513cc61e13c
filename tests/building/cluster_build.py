"""``python -m tests.building.cluster_build SLAB SECONDS ARGUMENT...``: in small, synced slabs.

With STOP_AT in its environment it stops when the journal has so many units, as by SIGSTOP.
"""

import os
import sys

from quantkit.cli.main import main
from tests.building.builds import small_slabs
from tests.building.journaled import stop_itself, when_journaled

if __name__ == "__main__":
    slab, seconds, *arguments = sys.argv[1:]
    sys.argv = ["quantkit", *arguments]
    if "STOP_AT" in os.environ:
        when_journaled(int(os.environ["STOP_AT"]), stop_itself).start()
    with small_slabs(int(slab), float(seconds)):
        main()
