"""What the searches of ggml weigh the elements of a block with."""

from quantkit.encodings.fast.jit import inlined
from quantkit.encodings.fast.simd import LANES, f32, load, sqrt, store


@inlined
def sum_of_squares(x, start, n):
    """Of ``n`` elements of a tile, added up in their order."""
    total = f32(0)
    for i in range(n):
        value = load(x, (start + i) * LANES)
        total = total + value * value
    return total


@inlined
def weigh(x, start, n, sigma2, importance, weight):
    """What the searches weigh elements with: importance * sqrt(sigma2 + x**2)."""
    for i in range(n):
        value = load(x, (start + i) * LANES)
        spread = sqrt(sigma2 + value * value)
        store(weight, i * LANES, load(importance, (start + i) * LANES) * spread)


@inlined
def weigh_by_square(x, start, n, weight):
    """Each element by its square."""
    for i in range(n):
        value = load(x, (start + i) * LANES)
        store(weight, i * LANES, value * value)
