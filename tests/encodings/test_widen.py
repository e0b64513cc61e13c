"""Stored floats to float32: exact for every bit pattern, and NaN and infinity found."""

from math import isfinite

import numpy as np
import pytest

from quantkit.encodings.widen import first_nonfinite, largest_magnitude, widen

PATTERNS = np.arange(2**16, dtype=np.uint16)


def test_every_bf16_is_the_upper_half_of_a_float32() -> None:
    wide = widen(PATTERNS.view(np.uint8), "BF16")
    np.testing.assert_array_equal(wide.view(np.uint32), PATTERNS.astype(np.uint32) << 16)


def test_every_finite_f16_keeps_its_value() -> None:
    wide = widen(PATTERNS.view(np.uint8), "F16")
    finite = (PATTERNS & 0x7C00) != 0x7C00
    exponent = (PATTERNS >> 10 & 31).astype(np.int32)
    fraction = (PATTERNS & 1023).astype(np.float64)
    value = np.where(exponent == 0, fraction * 2.0**-24, (1024 + fraction) * 2.0 ** (exponent - 25))
    signed = np.where(PATTERNS >> 15, -value, value)
    np.testing.assert_array_equal(wide[finite], signed[finite].astype(np.float32))


def test_float32_is_left_as_it_is() -> None:
    values = np.array([1.0, -2.5, 1e-40], np.float32)
    np.testing.assert_array_equal(widen(values.view(np.uint8), "F32"), values)


@pytest.mark.parametrize(("dtype", "limit"), [("BF16", 0x7F80), ("F16", 0x7C00)])
def test_exactly_the_infinite_and_nan_patterns_are_not_finite(dtype: str, limit: int) -> None:
    for pattern in PATTERNS[::7]:
        stored = np.array([0, pattern, 0x8001], np.uint16).view(np.uint8)
        finite = int(pattern) & 0x7FFF < limit
        assert isfinite(largest_magnitude(stored, dtype)) is finite
        if not finite:
            assert first_nonfinite(stored, dtype) == 1


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_float32_nan_and_infinity_are_found(value: float) -> None:
    values = np.zeros(1000, np.float32)
    values[[700, 900]] = value
    assert not isfinite(largest_magnitude(values.view(np.uint8), "F32"))
    assert first_nonfinite(values.view(np.uint8), "F32") == 700


@pytest.mark.parametrize("values", [[1, 2.5], [-1, 2], [-3, 2], [-3, -2], [-0.0, 0], [0.0]])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_largest_magnitude_whatever_the_signs(values: list[float], dtype: str) -> None:
    stored = np.array(values, np.float16 if dtype == "F16" else np.float32)
    if dtype == "BF16":
        stored = (stored.view(np.uint32) >> 16).astype(np.uint16)
    assert largest_magnitude(stored.view(np.uint8), dtype) == max(map(abs, values))


def test_nothing_has_no_magnitude() -> None:
    assert largest_magnitude(np.empty(0, np.uint8), "BF16") == 0
