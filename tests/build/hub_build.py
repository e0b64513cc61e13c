"""``python -m tests.build.hub_build ID OUT SLAB PIECE QUANT...``: a build that a test kills."""

import sys
from pathlib import Path
from unittest.mock import patch

from quantkit.build.work import prepare
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.plan.quants import find_quants
from tests.build.builds import build_work, small_slabs

if __name__ == "__main__":
    repo_id, out, slab, piece, *quants = sys.argv[1:]
    with (
        small_slabs(int(slab)),
        patch("quantkit.checkpoint.ahead._LARGEST_PIECE", int(piece)),
    ):
        work = prepare(open_hub_checkpoint(repo_id), find_quants(quants))
        build_work(work, Path(out))
