"""The block formats of GGUF, as integers."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Encoding:
    """A block format: ``elements`` weights become ``bytes`` bytes. ``id`` is ggml's type number."""

    name: str
    id: int
    elements: int
    bytes: int

    def holds_rows_of(self, columns: int) -> bool:
        """Whether rows of this many elements are whole blocks."""
        return columns % self.elements == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of ``columns`` elements, which must be whole blocks."""
        return columns // self.elements * self.bytes

    @property
    def is_block(self) -> bool:
        """Whether weights share a scale, unlike in F32, F16 and BF16."""
        return self.elements > 1


# What gguf 0.19 lacks or has another size of (ggml/src/ggml-common.h).
_NEWER = (Encoding("Q8_1", 9, 32, 36), Encoding("Q2_0", 42, 64, 18))


@cache
def encodings() -> dict[str, Encoding]:
    """Every block format by ggml's name in capitals.

    Sizes are gguf-py's ``GGML_QUANT_SIZES``, and where those are behind the pinned llama.cpp, its.
    """
    from gguf.constants import GGML_QUANT_SIZES

    known = {
        kind.name: Encoding(kind.name, int(kind), elements, n_bytes)
        for kind, (elements, n_bytes) in GGML_QUANT_SIZES.items()
    }
    return known | {kind.name: kind for kind in _NEWER}


def encoding(name: str) -> Encoding:
    """The block format called ``name`` (ggml's name in capitals, such as ``Q4_K``)."""
    return encodings()[name]
