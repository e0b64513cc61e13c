"""A searched recipe as a value, as a small TOML file, and as llama-quantize's own options.

The file names the type of every tensor that llama-quantize would quantize, layers of a kind
together, in an order of its own, so that the same recipe is the same file. It is for models of one
architecture whose tensors have the same names and shapes, such as fine-tunes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from quantkit.core.documents import parse_toml, to_type
from quantkit.core.errors import PlanError
from quantkit.core.files import read_file
from quantkit.core.printable import quoted
from quantkit.core.writing import replace_file
from quantkit.encodings.encoding import encodings
from quantkit.families.model import Model, Target
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.plan import outline_plan
from quantkit.planning.quants import Quant, all_quants, searched_quant
from quantkit.planning.recipe import NEVER_STORED, Recipe
from quantkit.planning.spans import Span, parse_span, span_together
from quantkit.recipes.candidates import quantizable

_VERSION = 1
_MOST = 2**22  # bytes of a file; one of 5,000 tensors, each on its line, has a tenth of it
_MOST_TENSORS = 2**17
_FIX = "make it again with quantkit recipe"
_HEAD = "# A recipe of quantkit, for quantkit build MODEL --recipe FILE; see docs/recipes.md.\n"


@dataclass(frozen=True, slots=True)
class SearchedRecipe:
    """The type of every tensor that llama-quantize would quantize, and what it is for.

    ``base`` is the file type that the GGUF states; ``shapes`` the digest of the tensors' names and
    shapes; ``types`` the encodings' names by tensor. ``weighted`` says that the search counted on
    an importance matrix. ``basis`` says where the losses came from.
    """

    arch: str
    base: str
    shapes: str
    types: Mapping[str, str]
    weighted: bool = False
    basis: str = ""

    @property
    def spans(self) -> list[tuple[Span, str]]:
        """Spans of tensors with their type, those outside of layers first."""
        by_type: dict[str, list[str]] = {}
        for name, kind in self.types.items():
            by_type.setdefault(kind, []).append(name)
        found = [(span, kind) for kind, names in by_type.items() for span in span_together(names)]
        return sorted(found)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    arch: str
    base: str
    shapes: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    types: dict[str, str]
    weighted: bool = False
    basis: str = ""


def digest_of(targets: Iterable[Target]) -> str:
    """The digest of tensors' names and shapes, in whatever order they are given."""
    lines = sorted(f"{target.name} {_dimensions(target.shape)}\n" for target in targets)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _dimensions(shape: Sequence[int]) -> str:
    """A shape without the leading ones that a GGUF drops."""
    first = next((i for i, n in enumerate(shape) if n > 1), len(shape) - 1)
    return "x".join(map(str, shape[first:]))


def to_document(recipe: SearchedRecipe) -> dict[str, Any]:
    """A recipe as plain values, as files and manifests hold it."""
    return {
        "version": _VERSION,
        "arch": recipe.arch,
        "base": recipe.base,
        "weighted": recipe.weighted,
        "basis": recipe.basis,
        "shapes": recipe.shapes,
        "types": {span.text: kind.lower() for span, kind in recipe.spans},
    }


def to_toml(document: Mapping[str, Any]) -> str:
    """The text of a recipe's file, from its plain values."""
    head = [f"{key} = {_text(value)}" for key, value in document.items() if key != "types"]
    types = [f"{_text(name)} = {_text(kind)}" for name, kind in document["types"].items()]
    return _HEAD + "\n".join((*head, "", "[types]", *types, ""))


def write_recipe(path: Path, recipe: SearchedRecipe) -> None:
    """Keep a recipe as TOML.

    Raises:
        OutputError: ``path`` is a link or no file.
        OSError: it cannot be written.

    """
    replace_file(path, to_toml(to_document(recipe)).encode())


def _text(value: str | int | bool) -> str:
    """A value of TOML: JSON's, but for one character in strings."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_recipe(path: Path) -> SearchedRecipe:
    """The recipe in a file.

    Raises:
        PlanError: it cannot be read, is of another version, names a tensor twice, or a type or base
            that does not exist.

    """
    raw = read_file(path, most=_MOST, error=PlanError, fix=_FIX)
    table = parse_toml(raw, path, error=PlanError, fix=_FIX)
    document = to_type(table, _Document, path, error=PlanError, fix=_FIX)
    if document.version != _VERSION:
        raise PlanError(f"{path} was not written by this version of quantkit; {_FIX}.")
    if searched_quant(document.base, 0) is None:
        raise PlanError(
            f"{path} is based on {quoted(document.base)}, which is not a file type of blocks; "
            "write one such as q4_k_m."
        )
    types: dict[str, str] = {}
    for text, name in document.types.items():
        kind = encodings().get(name.upper())
        if kind is None or kind.name in NEVER_STORED:
            raise PlanError(
                f"{path} stores {quoted(text)} as {quoted(name)}, which is not a type of weights; "
                "write one such as q4_k."
            )
        for tensor in parse_span(text).names:
            if tensor in types:
                raise PlanError(f"{path} names {quoted(tensor)} twice; leave one of them out.")
            types[tensor] = kind.name
        if len(types) > _MOST_TENSORS:
            raise PlanError(f"{path} names more tensors than any model has; {_FIX}.")
    return SearchedRecipe(
        document.arch,
        document.base,
        document.shapes,
        types,
        document.weighted,
        document.basis,
    )


def tensor_type_file(recipe: SearchedRecipe) -> str:
    """What llama-quantize takes by ``--tensor-type-file``, beside the recipe's base as its type.

    A line for each span: an anchored and escaped pattern, and the type.
    """
    return "".join(f"{span.pattern}={kind.lower()}\n" for span, kind in recipe.spans)


def apply_recipe(recipe: SearchedRecipe, model: Model) -> tuple[Quant, Recipe]:
    """The recipe for a model, as the quant that files are named by and what chooses types.

    Raises:
        PlanError: it is for other tensors, or llama-quantize could not write one of them so.

    """
    targets = quantizable(model)
    _require_same(recipe, model, targets)
    known = encodings()
    types = {target.name: known[recipe.types[target.name]] for target in targets}
    base = all_quants()[recipe.base]
    chosen = Recipe(base.name, base.encoding, types=types, record=to_document(recipe))
    plan = outline_plan(model, base, recipe.weighted, chosen)
    for tensor in plan.tensors:
        wanted = types.get(tensor.target.name, tensor.encoding)
        if wanted != tensor.encoding:
            raise PlanError(
                f"The recipe stores {tensor.target.name} as {wanted.name}, and its rows of "
                f"{tensor.target.columns} are no multiple of {wanted.elements}; write "
                f"{tensor.encoding.name.lower()} for it."
            )
    quant = searched_quant(recipe.base, plan.bits_per_weight)
    assert quant is not None  # noqa: S101 - its base is one
    return quant, chosen


def _require_same(recipe: SearchedRecipe, model: Model, targets: Sequence[Target]) -> None:
    if recipe.arch != model.arch:
        raise PlanError(
            f"The recipe is for the architecture {quoted(recipe.arch)}, and this model is of "
            f"{model.arch}; search one for it with quantkit recipe."
        )
    names = [target.name for target in in_file_order(targets)]
    lacking = next((name for name in names if name not in recipe.types), None)
    there = set(names)
    strange = next((name for name in recipe.types if name not in there), None)
    if lacking is None and strange is None and recipe.shapes == digest_of(targets):
        return
    why = "its tensors have other shapes"
    if lacking is not None:
        why = f"it says nothing of {lacking}"
    elif strange is not None:
        why = f"there is no {quoted(strange)} here"
    raise PlanError(
        f"The recipe is for another model: {why}; search one for this model with quantkit recipe."
    )
