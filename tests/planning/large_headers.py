"""Models that are a header and nothing else, as the type rules see them."""

from collections.abc import Sequence
from typing import Any

from quantkit.families.facts import facts_of
from quantkit.families.model import Target
from quantkit.planning.llama_quantize import assign, in_file_order
from quantkit.planning.quants import all_quants
from quantkit.planning.recipe import EncodingOptions, recipe_of
from tests.architectures.sparse import Header


def keys_of(header: Header) -> dict[str, Any]:
    """Metadata by full names."""
    return {
        name if name.startswith(("general.", "clip.")) else f"{header.arch}.{name}": value
        for name, value in header.keys.items()
    }


def targets_of(header: Header) -> list[Target]:
    """The tensors in the order of llama-quantize's output."""
    return in_file_order(
        Target(name, "", tuple(reversed(shape)), stored=header.type_of(name).name)
        for name, shape in header.tensors.items()
    )


def types_of(
    header: Header,
    quant: str,
    has_imatrix: bool = False,
    options: Sequence[str] = (),
    targets: Sequence[Target] = (),
) -> dict[str, str]:
    """What `tests.architectures.dry_run.dry_run` gives, by our rules.

    Args:
        header: the model.
        quant: its quant.
        has_imatrix: whether there is an importance matrix.
        options: llama-quantize's own, each followed by what it is given.
        targets: the header's, if they were made before.

    """
    asked = list(zip(options[::2], options[1::2], strict=True))
    patterns = tuple(value for option, value in asked if option == "--tensor-type")
    output, embedding = map(dict(asked).get, ("--output-tensor-type", "--token-embedding-type"))
    wishes = EncodingOptions("fast", "ggml", patterns, output, embedding)
    recipe = recipe_of(all_quants()[quant], wishes)
    targets = targets or targets_of(header)
    facts = facts_of(header.arch, keys_of(header))
    chosen = assign(targets, header.arch, facts, recipe, has_imatrix)
    return {target.name: kind.name for target, kind in zip(targets, chosen, strict=True)}
