"""What holds of ``--search best`` in every format that it improves block by block."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.encode import encode
from quantkit.encodings.slab import Slab
from tests.encodings.rows import COLUMNS, importance, normal, slab_of, special
from tests.encodings.weighted_error import weighted_error


def errors(
    slab: Slab, name: str, columns: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Best's error and ggml's, per 256 weights."""
    kind = encoding(name)
    found = []
    for data in (encode(slab, kind, columns, "best"), ggml.encode(slab.rows, kind, columns)):
        decoded = dequantize(data, GGMLQuantizationType[name])
        np.testing.assert_array_equal(decoded.reshape(-1), ggml.decode(data.reshape(-1), kind))
        found.append(weighted_error(name, slab.rows, decoded, columns))
    return found[0], found[1]


def whole_numbers() -> Slab:
    """Rows that any version of numpy makes alike."""
    numbers = np.arange(8 * COLUMNS, dtype=np.int64).reshape(8, COLUMNS)
    mixed = numbers * 2654435761 % 2**32
    return slab_of(((mixed >> 12) % 2001 - 1000).astype(np.float32) * (1 + (mixed >> 28)), "F32")


def require_no_more_error_in_special_rows(name: str) -> None:
    """No block of rows of a special kind has more; what ggml refuses is refused."""
    columns = importance(COLUMNS, "holes")
    taken = []
    for row in special():
        try:
            ggml.encode(row[np.newaxis], encoding(name), columns)
            taken.append(row)
        except OverflowError:
            with pytest.raises(OverflowError):
                encode(slab_of(row[np.newaxis]), encoding(name), columns, "best")
    best, reference = errors(slab_of(np.array(taken)), name, columns)
    assert (best <= reference).all()


def require_blocks_on_their_own(name: str, n_rows: int) -> None:
    """A row's blocks do not depend on the rows that are encoded with it."""
    columns = importance(768)
    rows = normal(n_rows, 768)
    whole = encode(slab_of(rows), encoding(name), columns, "best")
    for first, last in ((0, 1), (1, n_rows)):
        part = encode(slab_of(rows[first:last]), encoding(name), columns, "best")
        np.testing.assert_array_equal(part, whole[first:last])
