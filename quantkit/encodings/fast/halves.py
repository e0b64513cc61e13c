"""float16 bits of vectors, by integer arithmetic: not every processor has instructions for them."""

from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.simd import absolute, bits_of, f32, from_bits, i32, select

INFINITE = 0x7C00
_SIGN = 0x8000
_REBIAS = 112 << 23  # exponents of float32 count from 127, those of float16 from 15


@inlined
def half_bits(x):
    """The bits of the nearest float16 of each lane, ties to even; beyond the range, infinity."""
    size = absolute(x)
    bits = bits_of(size)
    last = (bits >> i32(13)) & i32(1)
    normal = (bits + i32(0xFFF - _REBIAS) + last) >> i32(13)
    # Below 2**-14 halves are spaced evenly, as the float32 from 0.5 to 1 are.
    denormal = bits_of(size + f32(0.5)) - bits_of(f32(0.5))
    rounded = select(size < f32(2.0**-14), denormal, normal)
    rounded = select(size >= f32(65520.0), i32(INFINITE), rounded)
    return rounded | ((bits_of(x) >> i32(16)) & i32(_SIGN))


@inlined
def half_value(bits):
    """The float32 value of finite float16 bits."""
    size = from_bits((bits & i32(_SIGN - 1)) << i32(13)) * f32(2.0**112)
    return from_bits(bits_of(size) | ((bits & i32(_SIGN)) << i32(16)))
