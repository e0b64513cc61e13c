"""The check of scales, against ggml's own."""

import ctypes

import numpy as np
import pytest

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encodings
from quantkit.encodings.sound import is_sound

# It uses them for arithmetic alone.
UNKNOWN_TO_GGML = {"Q8_1", "Q8_K"}
BLOCKS = 600


@pytest.mark.parametrize("name", sorted(encodings().keys() - UNKNOWN_TO_GGML))
def test_it_says_what_ggml_says(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Of random bytes, of which a half is no finite number once in 32 times."""
    kind = encodings()[name]
    rng = np.random.default_rng(3)
    validate = ggml.library().ggml_validate_row_data
    validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    said = set()
    for _ in range(BLOCKS):
        block = rng.integers(0, 256, kind.bytes, np.uint8)
        expected = bool(validate(kind.id, block.ctypes.data, block.nbytes))
        assert is_sound(block, kind) == expected
        said.add(expected)
    if name not in ("I8", "I16", "I32", "I64", "NVFP4"):
        assert said == ({True, False} if name not in ("F32", "BF16", "F64") else said)
    capfd.readouterr()  # ggml prints what it finds


@pytest.mark.parametrize("name", ["Q8_0", "Q2_K", "IQ1_M", "MXFP4", "F16"])
def test_one_of_many_blocks(name: str) -> None:
    kind = encodings()[name]
    raw = np.zeros(64 * kind.bytes, np.uint8)
    assert is_sound(raw, kind)
    raw[40 * kind.bytes : 41 * kind.bytes] = 0xFF
    assert not is_sound(raw, kind)
