"""The block formats of GGUF, as integers."""

from collections.abc import Mapping
from dataclasses import dataclass


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


# ggml's types by their names in capitals: number, weights of a block, and its bytes (type_traits in
# ggml/src/ggml.c). gguf-py has such a table, too, but it is behind the pinned llama.cpp, and to
# import it takes longer than `quantkit fit` does to answer.
_TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q8_1": (9, 32, 36),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}
_ENCODINGS = {name: Encoding(name, *numbers) for name, numbers in _TYPES.items()}


def encodings() -> Mapping[str, Encoding]:
    """Every block format by ggml's name in capitals."""
    return _ENCODINGS


def encoding(name: str) -> Encoding:
    """The block format called ``name`` (ggml's name in capitals, such as ``Q4_K``)."""
    return _ENCODINGS[name]
