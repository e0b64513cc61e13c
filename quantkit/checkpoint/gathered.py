"""Importance matrices as they are gathered: raw sums, which can be added up and continued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.imatrix_file import (
    HasSums,
    means,
    read_content,
    require_sound,
    write_imatrix,
)
from quantkit.core.errors import ImatrixError
from quantkit.core.printable import quoted


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was gathered of text, before it is divided: raw sums by the tensors' names.

    ``context`` is the number of tokens per sequence.
    """

    entries: Mapping[str, HasSums]
    chunk_count: int
    context: int
    datasets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawSums:
    """HasSums of squares, shape (matrices, columns), and how many rows each or all of them saw."""

    squares: NDArray[np.float32]
    counts: NDArray[np.float32]


def load_sums(path: Path, context: int) -> Gathered:
    """Read an importance matrix as it was gathered, to go on with it or to add it to another.

    Args:
        path: the file.
        context: tokens per sequence, which the old format does not say.

    Raises:
        ImatrixError: as `load_imatrix` does.

    """
    content, _ = read_content(path)
    # The old format has means, scaled by sequences (``load_imatrix`` in tools/imatrix/imatrix.cpp).
    scale = np.float32(1 if content.context else context)
    entries = {
        name: RawSums((squares * scale).reshape(counts.size, -1), counts * scale)
        for name, (squares, counts) in content.entries.items()
    }
    require_sound(path, {name: sums.squares for name, sums in entries.items()})
    return Gathered(entries, content.chunk_count, content.context or context, content.datasets)


def add_sums(files: Sequence[tuple[Path, Gathered]]) -> Gathered:
    """What several files have gathered, together, as ``llama-imatrix --in-file`` adds them.

    Raises:
        ImatrixError: one has other sizes than those before it, so it is of another model.

    """
    entries: dict[str, RawSums] = {}
    for path, gathered in files:
        for name, sums in gathered.entries.items():
            known = entries.get(name)
            if known is None:
                entries[name] = RawSums(sums.squares.copy(), sums.counts.copy())
                continue
            counts = max(known.counts.size, sums.counts.size)
            if (
                known.squares.size != sums.squares.size
                or counts % known.counts.size
                or (counts % sums.counts.size)
            ):
                raise ImatrixError(
                    f"{path} has {sums.squares.size} sums for {quoted(name)}, and {files[0][0]} "
                    f"{known.squares.size}: they were made for other models."
                )
            entries[name] = RawSums(
                (known.squares.ravel() + sums.squares.ravel()).reshape(counts, -1),
                np.broadcast_to(known.counts, counts) + np.broadcast_to(sums.counts, counts),
            )
    context = files[0][1].context
    most = max((float(sums.counts.max()) for sums in entries.values()), default=0.0)
    datasets = tuple(name for _, gathered in files for name in gathered.datasets)
    return Gathered(entries, int(most) // context, context, datasets)


def add_files(files: Sequence[Path], context: int) -> Gathered:
    """What several files have gathered, together; ``context`` is that of files that say none.

    Raises:
        ImatrixError: one cannot be read, or they are of several models.

    """
    return add_sums([(file, load_sums(file, context)) for file in files])


def write_gathered(path: Path, gathered: Gathered) -> None:
    """Write the sums of several runs, as `write_imatrix` does, without a word on their making."""
    path.unlink(missing_ok=True)
    write_imatrix(
        path, gathered.entries, gathered.datasets, gathered.chunk_count, gathered.context, {}
    )


def as_imatrix(path: Path, gathered: Gathered) -> Imatrix:
    """HasSums as they would be read back from ``path``, where they are not written yet."""
    entries = {
        name: means(sums.squares.ravel(), sums.counts) for name, sums in gathered.entries.items()
    }
    return Imatrix(path, "", entries, gathered.chunk_count, gathered.datasets)


def add_earlier(new: Path, earlier: Sequence[Path], context: int) -> int:
    """Add what earlier files have gathered to a new one; the chunks that are in it then.

    ``context`` is that of files of the old format.
    """
    together = add_files([*earlier, new], context)
    write_gathered(new, together)
    return together.chunk_count
