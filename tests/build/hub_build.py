"""``python -m tests.build.hub_build SLAB PIECE ARGUMENT...``: quantkit in many small steps."""

import sys
from unittest.mock import patch

from quantkit.cli.main import main
from tests.build.builds import small_slabs

if __name__ == "__main__":
    slab, piece, *arguments = sys.argv[1:]
    sys.argv = ["quantkit", *arguments]
    with (
        small_slabs(int(slab)),
        patch("quantkit.checkpoint.ahead._LARGEST_PIECE", int(piece)),
    ):
        main()
