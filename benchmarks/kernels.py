"""Our kernels against ggml's: speed, ratio and bytes, side by side in one process.

``python benchmarks/kernels.py`` encodes the same rows with both, in turn. Seconds are of processor
time, so that what else the machine does counts less. The status is 1 if a single byte differs.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from statistics import geometric_mean

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from quantkit.checkpoint.open import open_checkpoint
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.encode import encode, has_kernel
from quantkit.encodings.slab import Slab
from quantkit.verification.machine import cpu_name

TINY = Path(__file__).resolve().parents[1] / "tests/checkpoints/tiny-mixtral"
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
IQ4 = ("IQ4_XS", "IQ4_NL")
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
ON_GRIDS = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M")
COLUMNS = 4096
SLAB = 4 * 2**20  # weights; as in a build
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Result:
    """One encoding over rows of one kind; speeds in million weights per second of one core."""

    encoding: str
    rows: str
    weighted: bool
    weights: int
    fast: float
    ggml: float
    differing_bytes: int

    @property
    def ratio(self) -> float:
        """Of the speeds."""
        return self.fast / self.ggml


def normal_rows(rng: np.random.Generator) -> NDArray[np.uint16]:
    return _as_bfloat16(rng.standard_normal(SLAB, np.float32))


def heavy_tailed_rows(rng: np.random.Generator) -> NDArray[np.uint16]:
    """Student's t with two degrees of freedom: blocks with outliers."""
    return _as_bfloat16(np.clip(rng.standard_t(2, SLAB), -1e4, 1e4).astype(np.float32))


def trained_rows(rng: np.random.Generator) -> NDArray[np.uint16]:
    """Rows of the trained checkpoint in the tests, drawn at random, each scaled by a little.

    It has 7 million weights: the scale makes new ones of them.
    """
    rows = _trained().reshape(-1, 256)[rng.integers(0, _trained().size // 256, SLAB // 256)]
    wide = (rows.astype(np.uint32) << 16).view(np.float32)
    return _as_bfloat16(wide * rng.uniform(0.5, 2, (len(wide), 1)).astype(np.float32))


ROWS: dict[str, Callable[[np.random.Generator], NDArray[np.uint16]]] = {
    "normal": normal_rows,
    "heavy-tailed": heavy_tailed_rows,
    "trained": trained_rows,
}


def main() -> int:
    options = parse_options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    jobs = [(n, w) for w in (False, True) for n in options.encodings if has_kernel(encoding(n), w)]
    results = [
        measure(name, weighted, kind, options.weights, options.threads, options.seed)
        for name, weighted in track(jobs, console=Console(stderr=True), transient=True)
        for kind in options.rows
    ]
    cores = "1 core" if options.threads == 1 else f"{options.threads} cores"
    console.print(f"{cpu_name()}, {cores}, {options.weights / 1e6:.0f} million weights each")
    console.print(table(results))
    for kinds, group in (("K-quants", K_QUANTS), ("i-quants on grids", ON_GRIDS)):
        for weighted in (False, True):
            ratios = [r.ratio for r in results if r.encoding in group and r.weighted == weighted]
            if ratios:
                how = "with" if weighted else "without"
                mean = geometric_mean(ratios)
                console.print(f"{kinds} {how} imatrix: {mean:.1f} times as fast")
    if options.json:
        report = {"machine": cpu_name(), "results": [asdict(r) for r in results]}
        options.json.write_text(json.dumps(report, indent=2))
    return 1 if any(r.differing_bytes for r in results) else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--encodings", nargs="+", default=[*K_QUANTS, *IQ4, *ON_GRIDS, *LEGACY])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--weights", type=int, default=2 * SLAB, help="of each kind; 13 slabs are 54 million"
    )
    parser.add_argument("--threads", type=int, default=1, help="that encode side by side")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def measure(name: str, weighted: bool, rows: str, weights: int, threads: int, seed: int) -> Result:
    rng = np.random.default_rng(seed)
    kind = encoding(name)
    importance = rng.lognormal(0, 1, COLUMNS).astype(np.float32) if weighted else None

    def fast(stored: NDArray[np.uint16]) -> NDArray[np.uint8]:
        return encode(slab_of(stored), kind, importance)

    def theirs(stored: NDArray[np.uint16]) -> NDArray[np.uint8]:
        return ggml.encode(slab_of(stored).rows, kind, importance)

    seconds = {"fast": 0.0, "ggml": 0.0}
    done = differing = 0
    # Compiles, and warms up both.
    warm = ROWS[rows](rng)[: 64 * COLUMNS]
    fast(warm), theirs(warm)
    with ThreadPoolExecutor(threads) as pool:
        for stored in slabs(rows, weights, rng):
            parts = np.split(stored, threads)
            for (ours, spent), (expected, as_well) in zip(
                list(pool.map(partial(timed, fast), parts)),
                list(pool.map(partial(timed, theirs), parts)),
                strict=True,
            ):
                seconds["fast"] += spent
                seconds["ggml"] += as_well
                differing += int((ours != expected).sum())
            done += stored.size
    speeds = {kernel: done / 1e6 / spent for kernel, spent in seconds.items()}
    return Result(name, rows, weighted, done, speeds["fast"], speeds["ggml"], differing)


def timed(
    encode_rows: Callable[[NDArray[np.uint16]], NDArray[np.uint8]], stored: NDArray[np.uint16]
) -> tuple[NDArray[np.uint8], float]:
    """The blocks, and the seconds of this thread alone."""
    start = time.thread_time()
    blocks = encode_rows(stored)
    return blocks, time.thread_time() - start


def slabs(rows: str, weights: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint16]]:
    for _ in range(-(-weights // SLAB)):
        yield ROWS[rows](rng)


def slab_of(stored: NDArray[np.uint16]) -> Slab:
    return Slab(stored.view(np.uint8), "BF16", COLUMNS)


def _as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.reshape(-1).view(np.uint32) >> 16).astype(np.uint16)


def _trained() -> NDArray[np.uint16]:
    parts = []
    for tensor in open_checkpoint(TINY).tensors.values():
        if tensor.shape[-1] % 256 == 0:
            offset, count = tensor.offset, prod(tensor.shape)
            parts.append(np.fromfile(tensor.file, np.uint16, count, offset=offset))
    return np.concatenate(parts)


def table(results: list[Result]) -> Table:
    drawn = Table(title="Million weights per second, widening included", title_justify="left")
    drawn.add_column("encoding")
    drawn.add_column("imatrix")
    drawn.add_column("rows")
    for heading in ("ggml", "fast", "ratio", "bytes that differ"):
        drawn.add_column(heading, justify="right")
    for result in results:
        drawn.add_row(
            result.encoding,
            "yes" if result.weighted else "no",
            result.rows,
            f"{result.ggml:.1f}",
            f"{result.fast:.0f}",
            f"{result.ratio:.1f}",
            f"{result.differing_bytes:,}",
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main())
