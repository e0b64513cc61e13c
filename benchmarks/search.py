"""``--search best`` against ggml's search: error, speed.

``python -m benchmarks.search`` encodes the rows of ``benchmarks/kernels.py`` and every matrix of
the tiny checkpoints with both, decodes them with gguf-py, and compares the error that ggml
minimizes for the type, the plain squared error and the speed (in processor time), for each kind of
rows and each type. The status is 1 if a matrix got worse.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from rich.progress import track
from rich.table import Table

from benchmarks.kernels import IQ4, K_QUANTS, ON_GRIDS, ROWS, console
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.encode import encode
from quantkit.encodings.kernel import is_searched
from quantkit.encodings.slab import Slab
from tests.encodings.weighted_error import weighted_error

CHECKPOINTS = Path(__file__).resolve().parents[1] / "tests/checkpoints"
TINY = ("tiny-mixtral", "tiny-mistral")


@dataclass(frozen=True, slots=True)
class Result:
    """One type over rows of one kind: best's errors as parts of ggml's, its speed in ggml's."""

    encoding: str
    rows: str
    weighted: bool
    matrices: int
    error: float
    worst_matrix: float
    plain_error: float
    speed: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, default=4.2e6, help="per kind of row")
    parser.add_argument("--encodings", nargs="+", default=[*K_QUANTS, *IQ4, *ON_GRIDS])
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    cases = [(n, w) for w in (False, True) for n in args.encodings if is_searched(n, w)]
    results = []
    for name, weighted in track(cases, console=console, transient=True):
        for rows in ROWS:
            results.append(measure(name, rows, weighted, list(_random(rows, args.weights))))
        for checkpoint in TINY:
            results.append(measure(name, checkpoint, weighted, list(_matrices(checkpoint))))
    console.print(table(results))
    console.print(by_type(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return int(any(result.worst_matrix > 1 for result in results))


def measure(name: str, rows: str, weighted: bool, slabs: list[Slab]) -> Result:
    """Encode every slab with both searches, in turn."""
    kind, rng = encoding(name), np.random.default_rng(7)
    errors, plain, seconds = [], [], []
    for slab in slabs:
        columns = rng.gamma(1, 1, slab.columns).astype(np.float32) if weighted else None
        encode(Slab(slab.raw[: 2 * slab.columns], slab.dtype, slab.columns), kind, columns, "best")
        ggml.encode(slab.rows[:2], kind, columns)  # which makes its tables, as ours has
        begun = time.thread_time()
        ours = encode(slab, kind, columns, "best")
        between = time.thread_time()
        theirs = ggml.encode(slab.rows, kind, columns)
        seconds.append((between - begun, time.thread_time() - between))
        decoded = [dequantize(data, GGMLQuantizationType[name]) for data in (ours, theirs)]
        errors.append([weighted_error(name, slab.rows, got, columns).sum() for got in decoded])
        plain.append([np.square(got - slab.rows, dtype=np.float64).sum() for got in decoded])
    by_matrix = np.array(errors)
    (best, reference), (off, off_reference) = by_matrix.sum(axis=0), np.sum(plain, axis=0)
    ours_seconds, theirs_seconds = np.sum(seconds, axis=0)
    return Result(
        name,
        rows,
        weighted,
        len(slabs),
        best / reference,
        float((by_matrix[:, 0] / by_matrix[:, 1]).max()),
        off / off_reference,
        theirs_seconds / ours_seconds,
    )


def _random(rows: str, weights: float) -> Iterator[Slab]:
    """Matrices of 2**18 weights."""
    rng, size = np.random.default_rng(0), 2**18
    done = 0
    while done < weights:
        for part in ROWS[rows](rng).reshape(-1, size):
            if done < weights:
                yield Slab(part.view(np.uint8), "BF16", 4096)
            done += size


def _matrices(checkpoint: str) -> Iterator[Slab]:
    """Every matrix of whole superblocks; experts one by one."""
    for tensor in open_checkpoint(CHECKPOINTS / checkpoint).tensors.values():
        if len(tensor.shape) >= 2 and tensor.shape[-1] % 256 == 0:
            matrix = FLOAT_BYTES[tensor.dtype] * tensor.shape[-1] * tensor.shape[-2]
            raw = np.fromfile(
                tensor.file,
                np.uint8,
                FLOAT_BYTES[tensor.dtype] * tensor.n_elements,
                offset=tensor.offset,
            )
            for part in raw.reshape(-1, matrix):
                yield Slab(part, tensor.dtype, tensor.shape[-1])


def table(results: list[Result]) -> Table:
    drawn = Table(title="best, as parts of ggml's search", title_justify="left")
    for heading in ("encoding", "imatrix", "rows"):
        drawn.add_column(heading)
    for heading in ("matrices", "error", "worst matrix", "plain error", "speed"):
        drawn.add_column(heading, justify="right")
    for result in results:
        drawn.add_row(
            result.encoding,
            "yes" if result.weighted else "no",
            result.rows,
            f"{result.matrices}",
            f"{result.error:.4f}",
            f"{result.worst_matrix:.4f}",
            f"{result.plain_error:.4f}",
            f"{result.speed:.1f}",
        )
    return drawn


def by_type(results: list[Result]) -> Table:
    """The mean error of each type over the kinds of rows, and the worst of the rest."""
    drawn = Table(title="the same by type", title_justify="left")
    for heading in ("encoding", "imatrix"):
        drawn.add_column(heading)
    for heading in ("mean error", "worst matrix", "least speed"):
        drawn.add_column(heading, justify="right")
    for name, weighted in dict.fromkeys((r.encoding, r.weighted) for r in results):
        mine = [r for r in results if (r.encoding, r.weighted) == (name, weighted)]
        drawn.add_row(
            name,
            "yes" if weighted else "no",
            f"{fmean(r.error for r in mine):.4f}",
            f"{max(r.worst_matrix for r in mine):.4f}",
            f"{min(r.speed for r in mine):.1f}",
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main())
