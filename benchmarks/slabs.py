"""What a slab costs in every encoding that quants are made of, against Q4_K.

``python -m benchmarks.slabs`` encodes the same 4 Mi normal weights in all of them in turn, as a
build does: by a kernel of ours where there is one, else by ggml's. Seconds are of processor time,
and widening, which serves all encodings at once, is done before.
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
from rich.progress import track
from rich.table import Table

from benchmarks.kernels import COLUMNS, ROWS, SLAB, console, slab_of
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.encodings.fast.encode import encode, has_kernel
from quantkit.encodings.fast.tiles import make_tiles
from quantkit.encodings.slab import Slab
from quantkit.planning.quants import all_quants
from quantkit.verification.machine import cpu_name

REFERENCE = "Q4_K"
_MOST = 5.0  # times the time of the reference
_WEIGHTED_ONLY = ("IQ2_XS", "IQ2_XXS", "IQ1_S")  # the others ggml refuses without importance


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--encodings", nargs="+", default=encodings(), metavar="NAME")
    parser.add_argument("--rows", choices=ROWS, default="normal")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=int, default=SLAB, help="of a slab")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    rng = np.random.default_rng(0)
    slab = slab_of(ROWS[args.rows](rng)[: args.weights])
    columns = rng.lognormal(0, 1, COLUMNS).astype(np.float32)
    names = dict.fromkeys([REFERENCE, *args.encodings])
    cases = [
        (encoding(name), weighted)
        for weighted in (False, True)
        for name in names
        if weighted or name not in _WEIGHTED_ONLY
    ]
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for kind, weighted in cases:  # compiles, and widens the slab
        spend(slab_of(np.zeros(COLUMNS, np.uint16)), kind, columns if weighted else None)
    slab.rows, slab.tiles(256, make_tiles)
    for _ in track(range(args.rounds), console=console, transient=True):
        for kind, weighted in cases:
            importance = columns if weighted else None
            seconds[kind.name, weighted].append(spend(slab, kind, importance))
    took = {case: median(each) * SLAB / args.weights for case, each in seconds.items()}
    console.print(f"{cpu_name()}, 1 core, {args.rows} rows, {args.rounds} rounds")
    console.print(table(took))
    if args.json:
        rows = [{"encoding": n, "weighted": w, "seconds": s} for (n, w), s in took.items()]
        args.json.write_text(json.dumps({"machine": cpu_name(), "slabs": rows}, indent=2))
    return 0


def encodings() -> list[str]:
    """The names of all encodings that quants are made of, best first."""
    quants = all_quants().values()
    kinds = [kind for quant in quants for kind in (quant.encoding, quant.output) if kind]
    return list(dict.fromkeys(kind.name for kind in kinds if kind.name != "F32"))


def spend(slab: Slab, kind: Encoding, importance: np.ndarray | None) -> float:
    """Seconds of this thread for a slab."""
    start = time.thread_time()
    encode(slab, kind, importance)
    return time.thread_time() - start


def table(took: dict[tuple[str, bool], float]) -> Table:
    drawn = Table(title=f"A slab of {SLAB:,} weights", title_justify="left")
    for heading in ("encoding", "imatrix", "kernel"):
        drawn.add_column(heading)
    for heading in ("ms", "M weights/s", f"times {REFERENCE}"):
        drawn.add_column(heading, justify="right")
    for (name, weighted), seconds in took.items():
        ratio = seconds / took[REFERENCE, weighted]
        drawn.add_row(
            name,
            "yes" if weighted else "no",
            "ours" if has_kernel(encoding(name), weighted) else "ggml's",
            f"{1000 * seconds:.0f}",
            f"{SLAB / 1e6 / seconds:.0f}",
            f"[bold]{ratio:.2f}[/]" if ratio > _MOST else f"{ratio:.2f}",
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main())
