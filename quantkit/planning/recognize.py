"""Which quant a GGUF is, as far as its headers tell."""

from collections.abc import Sequence

from quantkit.checkpoint.gguf import Header, HeaderTensor
from quantkit.planning.names import Category, category_of
from quantkit.planning.quants import Quant, all_quants


def quant_of(headers: Sequence[Header]) -> Quant | None:
    """The quant that a GGUF's ``general.file_type`` names; None for one that is not known here.

    A variant has its base's file type and is told by the types of output and embeddings. Where
    their rows are too short for the base's blocks, the base may store them so itself: then it is
    taken for the base.

    Args:
        headers: of all the files of one GGUF, the first one first.

    """
    file_type = headers[0].metadata.get("general.file_type")
    found = [quant for quant in all_quants().values() if quant.file_type == file_type]
    ends = [
        tensor
        for header in headers
        for tensor in header.tensors
        if category_of(tensor.name) in ("output", "token_embd")
    ]
    variant = next((quant for quant in found if quant.base and _stores(quant, ends)), None)
    return variant or next((quant for quant in found if not quant.base), None)


def _stores(variant: Quant, ends: Sequence[HeaderTensor]) -> bool:
    """Whether output and embeddings are stored as a variant has them, and its base has not."""
    types: dict[Category, object] = {
        "output": variant.output,
        "token_embd": variant.token_embedding,
    }
    return all(tensor.encoding == types[category_of(tensor.name)] for tensor in ends) and any(
        variant.encoding.holds_rows_of(tensor.shape[-1]) for tensor in ends
    )
