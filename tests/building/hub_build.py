"""``python -m tests.building.hub_build SLAB PIECE UNITS ARGUMENT...``: quantkit in small steps.

It is killed when the journal has UNITS units, unless that is 0.
"""

import sys
from unittest.mock import patch

from quantkit.cli.main import main
from tests.building.builds import small_slabs
from tests.building.journaled import kill_itself, when_journaled

if __name__ == "__main__":
    slab, piece, units, *arguments = sys.argv[1:]
    sys.argv = ["quantkit", *arguments]
    if int(units):
        when_journaled(int(units), kill_itself).start()
    with (
        small_slabs(int(slab)),
        patch("quantkit.checkpoint.ahead._LARGEST_PIECE", int(piece)),
    ):
        main()
