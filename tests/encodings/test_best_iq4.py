"""``--search best`` for IQ4_NL and IQ4_XS."""

import hashlib

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast.best_iq4 import FORMATS
from quantkit.encodings.fast.encode import encode
from tests.encodings.best import (
    errors,
    require_blocks_on_their_own,
    require_no_more_error_in_special_rows,
    whole_numbers,
)
from tests.encodings.rows import COLUMNS, importance, normal, slab_of
from tests.encodings.test_best import slab_of_kind
from tests.encodings.weighted_error import weighted_error

# Of the blocks of ``whole_numbers``: a change of these is a change of what a build writes.
GOLDEN = {"IQ4_NL": "96a5e3b0291fb441", "IQ4_XS": "b88d8b1acb7ad671"}


@pytest.mark.parametrize("name", FORMATS)
class TestError:
    @pytest.mark.parametrize("rows", ["normal", "heavy-tailed", "trained"])
    def test_less_and_more_in_no_block(self, name: str, rows: str) -> None:
        slab = slab_of_kind(rows)
        best, reference = errors(slab, name, importance(slab.columns))
        # A few blocks have nearly all the error where tails are heavy.
        assert best.sum() < (0.997 if rows == "heavy-tailed" else 0.97) * reference.sum()
        assert (best <= reference).all()

    @pytest.mark.parametrize("rows", ["positive", "negative", "far from 0", "uniform"])
    def test_more_in_no_block_of_odd_rows(self, name: str, rows: str) -> None:
        slab = slab_of_kind(rows)
        best, reference = errors(slab, name, importance(slab.columns))
        assert (best <= reference).all()

    def test_special_rows(self, name: str) -> None:
        require_no_more_error_in_special_rows(name)

    def test_a_block_does_not_depend_on_its_neighbours(self, name: str) -> None:
        require_blocks_on_their_own(name, 40)


def test_rows_that_are_no_whole_superblocks() -> None:
    rows, columns = normal(40, 288), importance(288)
    best = encode(slab_of(rows), encoding("IQ4_NL"), columns, "best").reshape(40, -1, 18)
    for block in range(9):
        part = slice(32 * block, 32 * block + 32)
        alone = slab_of(np.ascontiguousarray(rows[:, part]))
        expected = encode(alone, encoding("IQ4_NL"), columns[part], "best")
        np.testing.assert_array_equal(best[:, block], expected)


@pytest.mark.parametrize("name", FORMATS)
def test_decoded_weights_shrink_by_less_than_half_of_those_of_ggml(name: str) -> None:
    """By how much their weighted product with the weights is below that of the weights alone."""
    slab, columns = slab_of_kind("normal"), importance(COLUMNS)
    shrunk = []
    for search in ("best", "ggml"):
        data = encode(slab, encoding(name), columns, search)
        decoded = dequantize(data, GGMLQuantizationType[name]).reshape(slab.rows.shape)
        # |a + b|^2 - |a - b|^2 = 4ab, and the measure is such a square.
        apart, together, own = (
            weighted_error(name, slab.rows, other, columns).sum()
            for other in (decoded, -decoded, np.zeros_like(decoded))
        )
        shrunk.append(1 - (together - apart) / 4 / own)
    assert abs(shrunk[0]) < 0.5 * shrunk[1]


@pytest.mark.parametrize("name", FORMATS)
def test_without_importance_blocks_are_those_of_ggml(name: str) -> None:
    slab, kind = slab_of(normal(2)), encoding(name)
    expected = ggml.encode(slab.rows, kind, None)
    np.testing.assert_array_equal(encode(slab, kind, None, "best"), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_golden(name: str) -> None:
    columns = (1 + np.arange(COLUMNS) % 7).astype(np.float32)
    data = encode(whole_numbers(), encoding(name), columns, "best")
    assert hashlib.sha256(data.tobytes()).hexdigest()[:16] == GOLDEN[name]
