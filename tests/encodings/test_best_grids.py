"""``--search best`` for the i-quants on grids."""

import hashlib

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.encodings.fast import best_grids, best_iq1
from quantkit.encodings.fast.encode import encode
from quantkit.encodings.fast.grid_blocks import put_together, take_apart
from quantkit.encodings.fast.grids import read_grid
from quantkit.encodings.fast.near_points import near_points
from quantkit.encodings.slab import Slab
from tests.encodings.best import (
    errors,
    require_blocks_on_their_own,
    require_no_more_error_in_special_rows,
    whole_numbers,
)
from tests.encodings.rows import (
    COLUMNS,
    heavy_tailed,
    importance,
    normal,
    slab_of,
    trained,
)
from tests.encodings.weighted_error import weighted_error

FORMATS = (*best_grids.FORMATS, *best_iq1.FORMATS)
# Of the blocks of ``whole_numbers``: a change of these is a change of what a build writes.
GOLDEN = {
    "IQ3_S": "16eeecedebb5d17b",
    "IQ3_XXS": "33bcf51b7ebd01b0",
    "IQ2_S": "fe8dad4798fe2bdb",
    "IQ2_XS": "ccce57f87bcbb4f4",
    "IQ2_XXS": "b0738725613f99e0",
    "IQ1_S": "1a01f1666bea9c7a",
    "IQ1_M": "f748841a06de972d",
}


def slab_of_kind(rows: str) -> Slab:
    plain, rng = normal(32), np.random.default_rng(4)
    if rows == "trained":
        return Slab(trained()[: 2**15].view(np.uint8), "BF16", 256)
    made = {
        "normal": plain,
        "heavy-tailed": heavy_tailed(32),
        "positive": np.abs(plain),
        "far from 0": plain - 3,
        "uneven columns": plain * np.exp(rng.standard_normal(COLUMNS, np.float32)),
        "few magnitudes": (np.round(plain * 3) / 3).astype(np.float32),
    }
    return slab_of(made[rows], "BF16")


@pytest.mark.parametrize("name", FORMATS)
class TestError:
    @pytest.mark.parametrize("rows", ["normal", "heavy-tailed", "trained"])
    def test_less_by_two_percent_and_more_in_no_block(self, name: str, rows: str) -> None:
        slab = slab_of_kind(rows)
        best, reference = errors(slab, name, importance(slab.columns))
        assert best.sum() < 0.98 * reference.sum()
        assert (best <= reference).all()

    @pytest.mark.parametrize("rows", ["positive", "far from 0", "uneven columns", "few magnitudes"])
    def test_more_in_no_block_of_odd_rows(self, name: str, rows: str) -> None:
        slab = slab_of_kind(rows)
        best, reference = errors(slab, name, importance(slab.columns))
        assert (best <= reference).all()

    def test_special_rows(self, name: str) -> None:
        require_no_more_error_in_special_rows(name)

    def test_a_block_does_not_depend_on_its_neighbours(self, name: str) -> None:
        require_blocks_on_their_own(name, 14)


def test_without_importance_blocks_are_those_of_ggml() -> None:
    slab, kind = slab_of(normal(2)), encoding("IQ3_S")
    expected = ggml.encode(slab.rows, kind, None)
    np.testing.assert_array_equal(encode(slab, kind, None, "best"), expected)


@pytest.mark.parametrize("name", best_grids.FORMATS)
def test_decoded_weights_do_not_shrink(name: str) -> None:
    """Their weighted product with the weights is that of the weights with themselves."""
    slab, columns = slab_of_kind("normal"), importance(COLUMNS)
    data = encode(slab, encoding(name), columns, "best")
    decoded = dequantize(data, GGMLQuantizationType[name]).reshape(slab.rows.shape)
    spread = weighted_error(name, slab.rows, decoded, columns).sum()
    # |a + b|^2 - |a - b|^2 = 4ab, and the measure is such a square.
    product = (weighted_error(name, slab.rows, -decoded, columns).sum() - spread) / 4
    own = weighted_error(name, slab.rows, np.zeros_like(decoded), columns).sum()
    assert product == pytest.approx(own, rel=0.01)


@pytest.mark.parametrize("name", FORMATS)
def test_golden(name: str) -> None:
    columns = (1 + np.arange(COLUMNS) % 7).astype(np.float32)
    data = encode(whole_numbers(), encoding(name), columns, "best")
    assert hashlib.sha256(data.tobytes()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", FORMATS)
def test_every_bit_of_a_block_belongs_to_a_part(name: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (50, encoding(name).bytes)).astype(np.uint8)
    again = np.zeros_like(raw)
    put_together(again, name, take_apart(raw, name))
    np.testing.assert_array_equal(again, raw)


@pytest.mark.parametrize("name", [*best_grids.FORMATS, "IQ1_S"])
def test_the_points_of_a_place_are_near_and_none_is_in_vain(name: str) -> None:
    grid, near = read_grid(name).astype(np.int64), near_points(name)
    size = grid.shape[1]
    bits, n_places = 16 // size, 14 if size == 4 else 4
    tried = near.codes.reshape(1 << 16, -1)
    for place in np.random.default_rng(3).integers(0, n_places, (50, size)):
        middle = np.select(
            [place == 0, place == n_places - 1], [1.25, n_places + 0.75], place + 1.5
        )
        off = np.abs(2 * grid + 1 - middle)
        points = list(dict.fromkeys(near.numbers[tried[(place << bits * np.arange(size)).sum()]]))
        distances = (off[points] ** 2).sum(1)
        assert distances[0] == (off**2).sum(1).min()
        assert (np.diff(distances) >= 0).all()
        for k, point in enumerate(points):
            assert not (off[points[:k]] <= off[point]).all(1).any()
