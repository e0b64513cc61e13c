"""Stored floats to float32: exact for every bit pattern, and NaN and infinity found."""

import numpy as np
import pytest

from quantkit.encodings.widen import first_nonfinite, widen

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
def test_exactly_the_infinite_and_nan_patterns_are_found(dtype: str, limit: int) -> None:
    for pattern in PATTERNS[::7]:
        stored = np.array([0, pattern], np.uint16)
        expected = 1 if int(pattern) & 0x7FFF >= limit else None
        assert first_nonfinite(stored.view(np.uint8), dtype) == expected


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_float32_nan_and_infinity_are_found(value: float) -> None:
    values = np.zeros(1000, np.float32)
    values[[700, 900]] = value
    assert first_nonfinite(values.view(np.uint8), "F32") == 700
    values[[700, 900]] = np.finfo(np.float32).max
    assert first_nonfinite(values.view(np.uint8), "F32") is None


def test_nothing_is_finite() -> None:
    assert first_nonfinite(np.empty(0, np.uint8), "BF16") is None
