"""ggml's kernels through ctypes, against gguf-py's independent decoders."""

import ctypes
import re

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from quantkit.core.errors import PlanError
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding, encodings
from tests import native_tools

GGML_TYPE_COUNT = 43  # ggml/include/ggml.h

# The largest relative RMS error that each format may leave on normal rows, from its bits: a
# wrong block layout or scale leaves errors near 1. Formats whose tables take seconds to set up are
# left to the parity tests, which compare their bytes.
BOUNDS = {
    "F32": 0.0,
    "F16": 1e-3,
    "BF16": 4e-3,
    "Q8_0": 0.01,
    "Q6_K": 0.03,
    "Q5_1": 0.05,
    "Q5_K": 0.05,
    "Q5_0": 0.06,
    "Q4_1": 0.1,
    "Q4_K": 0.1,
    "IQ4_NL": 0.1,
    "IQ4_XS": 0.1,
    "Q4_0": 0.12,
    "Q3_K": 0.2,
    "IQ3_S": 0.2,
    "IQ3_XXS": 0.25,
    "Q2_K": 0.35,
    "IQ2_XXS": 0.5,
    "MXFP4": 0.15,
    "NVFP4": 0.15,
}


def _decode(data: np.ndarray, name: str) -> np.ndarray:
    return quants.dequantize(data, GGMLQuantizationType[name])


def _rows(n_rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, columns), np.float32)


def _relative_error(name: str, rows: np.ndarray, importance: np.ndarray | None) -> float:
    decoded = _decode(ggml.encode(rows, encoding(name), importance), name)
    assert decoded.shape == rows.shape
    return float(np.sqrt(((decoded - rows) ** 2).mean() / (rows**2).mean()))


@pytest.mark.parametrize("name", BOUNDS)
def test_decoding_gives_the_weights_back(name: str) -> None:
    rows = _rows(7, 768)
    assert _relative_error(name, rows, np.ones(768, np.float32)) <= BOUNDS[name]


@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "F32"])
def test_ggmls_decoder_is_as_exact_as_gguf_pys(name: str) -> None:
    data = ggml.encode(_rows(7, 768), encoding(name), np.ones(768, np.float32))
    ours, theirs = ggml.decode(data.reshape(-1), encoding(name)), _decode(data, name).reshape(-1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["I32", "F64"])
def test_what_is_no_format_of_weights_has_no_decoder(name: str) -> None:
    with pytest.raises(PlanError, match=name):
        ggml.decode(np.zeros(288, np.uint8), encoding(name))


@pytest.mark.parametrize(
    ("name", "levels"),
    [("TQ1_0", (-1, 0, 1)), ("TQ2_0", (-1, 0, 1)), ("Q2_0", (-1, 0, 1)), ("Q1_0", (-1, 1))],
)
def test_weights_trained_to_few_levels_are_kept(name: str, levels: tuple[int, ...]) -> None:
    rows = np.random.default_rng(1).choice(np.array(levels, np.float32) * 0.75, (7, 768))
    data = ggml.encode(rows, encoding(name), None)
    np.testing.assert_array_equal(ggml.decode(data.reshape(-1), encoding(name)), rows.reshape(-1))
    if name.startswith("T"):
        np.testing.assert_array_equal(_decode(data, name), rows)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q5_1", "IQ4_NL"])
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (257, 32)])
def test_odd_shapes(name: str, shape: tuple[int, int]) -> None:
    assert _relative_error(name, _rows(*shape), None) <= BOUNDS[name] * 1.2


@pytest.mark.parametrize("name", ["Q4_K", "Q2_K", "IQ4_XS", "Q4_0"])
def test_importance_moves_error_away_from_what_matters(name: str) -> None:
    rows = _rows(64, 512)
    importance = np.ones(512, np.float32)
    importance[::4] = 100
    plain = _decode(ggml.encode(rows, encoding(name), None), name)
    weighted = _decode(ggml.encode(rows, encoding(name), importance), name)
    matters = importance > 1
    assert np.square(weighted - rows)[:, matters].sum() < np.square(plain - rows)[:, matters].sum()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q6_K", "F16"])
def test_rows_are_independent(name: str) -> None:
    rows = _rows(9, 512)
    whole = ggml.encode(rows, encoding(name), None)
    parts = [ggml.encode(rows[i : i + 1].copy(), encoding(name), None) for i in range(9)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q2_K", "Q4_0"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3.0])
def test_constant_rows(name: str, value: float) -> None:
    rows = np.full((2, 256), value, np.float32)
    decoded = _decode(ggml.encode(rows, encoding(name), None), name)
    np.testing.assert_allclose(decoded, rows, rtol=0.05)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "F16", "IQ4_NL"])
def test_scales_that_leave_sixteen_bits_are_refused(name: str) -> None:
    rows = _rows(2, 256)
    rows[1, 3] = 1e30
    with pytest.raises(OverflowError, match=name):
        ggml.encode(rows, encoding(name), None)


def test_sizes_are_ggmls() -> None:
    library = ctypes.CDLL(str(ggml.library_path()))
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    for kind in encodings().values():
        assert library.ggml_type_name(kind.id).decode().upper() == kind.name
        sizes = library.ggml_blck_size(kind.id), library.ggml_type_size(kind.id)
        assert sizes == (kind.elements, kind.bytes), kind.name


def test_no_block_format_of_ggml_is_left_out() -> None:
    library = ctypes.CDLL(str(ggml.library_path()))
    library.ggml_blck_size.restype = ctypes.c_int64
    # Formats that were removed have no elements. The numbers end where the pinned ggml's end.
    numbers = {n for n in range(GGML_TYPE_COUNT) if library.ggml_blck_size(n)}
    assert numbers == {kind.id for kind in encodings().values()}


@pytest.mark.native
def test_ggmls_formats_end_where_they_did() -> None:
    header = native_tools.BUILD / "llama.cpp" / "ggml" / "include" / "ggml.h"
    (count,) = re.findall(r"GGML_TYPE_COUNT\s*=\s*(\d+)", header.read_text())
    assert int(count) == GGML_TYPE_COUNT
