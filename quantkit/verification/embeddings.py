"""How far one model's embeddings are from another's, and the file that holds a reference's.

Models that embed predict nothing, so there is no divergence to measure: what their users compare
are the angles between embeddings, so the cosine between a model's embedding of a text and the
reference's of the same text is what tells how good it is.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import SmokeError
from quantkit.core.files import read_file
from quantkit.core.writing import write_file

_MARK = b"_embeds_"
_HEADER = struct.Struct("<8s2i")
_MOST_BYTES = 2**30
_PIECE = 400  # characters: about a hundred tokens, which every such model can take
_FEWEST = 20  # characters of a text worth embedding


@dataclass(frozen=True, slots=True)
class Cosines:
    """The cosines between a model's embeddings and the reference's, of ``n_texts`` texts."""

    n_texts: int
    mean: float
    worst: float


def split_text(text: str) -> list[str]:
    """A text in pieces of a few sentences or lines, as such models are given."""
    pieces = [""]
    for part in re.split(r"\n\s*\n|(?<=[.!?])\s+(?=[A-Z])", text):
        clean = " ".join(part.split())
        if pieces[-1] and len(pieces[-1]) + len(clean) >= _PIECE:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {clean}".strip()
    long = [piece for piece in pieces if len(piece) >= _FEWEST]
    return long or [text]


def compare_embeddings(embeddings: NDArray[np.float32], reference: NDArray[np.float32]) -> Cosines:
    """The cosines of embeddings of the same texts; both of shape (texts, numbers of each)."""
    ours, theirs = embeddings.astype(np.float64), reference.astype(np.float64)
    sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / np.maximum(sizes, np.finfo(np.float64).tiny)
    return Cosines(len(cosines), float(cosines.mean()), float(cosines.min()))


def write_embeddings(file: Path, embeddings: NDArray[np.float32]) -> None:
    """Store a reference's embeddings, shape (texts, numbers of each)."""
    data = _HEADER.pack(_MARK, *embeddings.shape) + embeddings.astype("<f4").tobytes()
    write_file(file, data)


def read_embeddings(file: Path) -> NDArray[np.float32]:
    """What `write_embeddings` stored.

    Raises:
        SmokeError: the file is no such one, or cut short.

    """
    data = read_file(file, most=_MOST_BYTES, error=SmokeError, fix="measure it again")
    mark, rows, columns = _HEADER.unpack(data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    if mark != _MARK or min(rows, columns) < 1 or len(data) != _HEADER.size + 4 * rows * columns:
        raise SmokeError(f"{file} holds no embeddings; measure the reference again.")
    values = np.frombuffer(data, "<f4", offset=_HEADER.size)
    return values.reshape(rows, columns).astype(np.float32)
