"""``python -m tests.build.cluster_build SLAB SECONDS ARGUMENT...``: in small, synced slabs."""

import sys

from quantkit.cli.main import main
from tests.build.builds import small_slabs

if __name__ == "__main__":
    slab, seconds, *arguments = sys.argv[1:]
    sys.argv = ["quantkit", *arguments]
    with small_slabs(int(slab), float(seconds)):
        main()
