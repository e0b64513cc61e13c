"""What llama-quantize takes where rows are no whole blocks, and what it cannot convert.

The first is ``tensor_type_fallback`` of llama.cpp's ``src/llama-quant.cpp``.
"""

from functools import lru_cache

from quantkit.core.errors import PlanError
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.families.model import Target
from quantkit.planning.names import n_dims
from quantkit.planning.recipe import NEVER_STORED

# What a block format falls back to where a row is no multiple of its elements. Those of 32 fall to
# F16 at once; for the rest llama-quantize knows nothing.
_FALLBACK = {
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_SMALL_BLOCK = 32
_MOST_DIMS = 3  # of what llama-quantize converts
_MOST_SHAPES = 2**12  # of tensors, with types: what rules say of them is kept, all layers ask again


def fit_to_rows(wanted: Encoding, target: Target) -> Encoding:
    """The encoding itself, or what llama-quantize takes where rows are no whole blocks of it.

    Raises:
        PlanError: it takes nothing.

    """
    fitting = _fitting(wanted.name, target.columns)
    if fitting is None:
        raise PlanError(
            f"{target.name} has rows of {target.columns}, no multiple of {wanted.elements} as "
            f"{wanted.name} needs, and llama-quantize has no fallback for it; name a "
            "type with --tensor-type, or choose another quant."
        )
    return fitting


@lru_cache(maxsize=_MOST_SHAPES)
def _fitting(wanted: str, columns: int) -> Encoding | None:
    """What llama-quantize takes for rows of so many elements; None where it knows nothing."""
    kind = encoding(wanted)
    if kind.holds_rows_of(columns):
        return kind
    if wanted not in _FALLBACK and kind.elements > _SMALL_BLOCK:
        return None
    smaller = encoding(_FALLBACK.get(wanted, wanted))
    return smaller if smaller.holds_rows_of(columns) else encoding("F16")


def require_convertible(target: Target, chosen: Encoding) -> None:
    """Refuse what llama-quantize aborts on when it comes to write it.

    Raises:
        PlanError: the tensor cannot be stored like that.

    """
    if fault := _fault(target.stored, target.shape, chosen.name):
        raise PlanError(f"{target.name} {fault}")


@lru_cache(maxsize=_MOST_SHAPES)
def _fault(stored: str, shape: tuple[int, ...], chosen: str) -> str | None:
    """Why a tensor cannot be converted, after its name; None where it can be."""
    kind, columns = encoding(chosen), shape[-1]
    if not kind.holds_rows_of(columns):
        return (
            f"cannot be stored as {chosen}: its rows of {columns} are no multiple of "
            f"{kind.elements}; choose another type for it."
        )
    if stored in NEVER_STORED:
        return (
            f"is stored as {stored}, which cannot be converted to {chosen}; make the GGUF again "
            "with a current converter."
        )
    if n_dims(shape) > _MOST_DIMS:
        return (
            "has four dimensions, and llama-quantize converts only matrices and stacks of them; "
            "leave the file as it is."
        )
    return None
