"""Quants by their public names."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from quantkit.core.errors import UnknownQuantError
from quantkit.core.profiles import load_profile
from quantkit.encodings.encoding import Encoding, encoding

# No quant of llama-quantize's: the model unquantized, or in the blocks that it was published in.
SOURCE = "source"

# llama-quantize's own shorthands.
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}


@dataclass(frozen=True, slots=True)
class Quant:
    """What a user asks for: a public name, and what llama.cpp calls it (``llama_ftype``).

    One that is ``trained_only`` is for models that were trained to its few levels, and no others.
    """

    name: str
    format: str
    file_type: int
    encoding: Encoding
    groups: tuple[str, ...]
    good_for: str
    trained_only: bool = False


@cache
def folder_quants() -> dict[str, Quant]:
    """The quants that transformers loads, by name, from ``profiles/transformers.toml``.

    What their encodings take is known to the format.
    """
    return {
        name: Quant(name, row["format"], -1, Encoding(name, -1, 1, 0), (), row["good_for"])
        for name, row in load_profile("transformers.toml").items()
    }


@cache
def all_quants() -> dict[str, Quant]:
    """Every GGUF quant by name, best first, from ``profiles/quants.toml``."""
    return {
        name: Quant(
            name,
            "gguf",
            row["file_type"],
            encoding(row["encoding"]),
            tuple(f"gguf-{group}" for group in row.get("groups", ())),
            row["good_for"],
            row.get("trained_only", False),
        )
        for name, row in load_profile("quants.toml").items()
    }


@cache
def known_quants() -> dict[str, Quant]:
    """Everything that can be asked for by name, best first: `SOURCE`, GGUF quants, folders."""
    kept = "every weight in the type it has in a GGUF or, as llama.cpp's converter says, would have"
    source = Quant(SOURCE, "gguf", -1, encoding("F32"), (), kept)
    return {SOURCE: source, **all_quants(), **folder_quants()}


def find_quants(names: Iterable[str]) -> tuple[Quant, ...]:
    """The quants that names and groups stand for, best first, each once; case does not matter.

    A name may be a list with commas.

    Raises:
        UnknownQuantError: a name that stands for none; a near miss is suggested.

    """
    names = list(names)
    quants = known_quants()
    groups = {group for quant in quants.values() for group in quant.groups}
    chosen: set[str] = set()
    for name in (part for listed in names for part in listed.split(",")):
        if not name.strip():
            continue  # a comma at the end
        key = name.strip().lower().replace("-", "_")
        group = key.replace("_", "-")
        key = group if group in quants else _ALIASES.get(key, key)
        if key in quants:
            chosen.add(key)
        elif group in groups:
            chosen.update(quant.name for quant in quants.values() if group in quant.groups)
        else:
            near = difflib.get_close_matches(key, [*quants, *_ALIASES, *groups], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "quantkit quants lists them."
            raise UnknownQuantError(f"There is no quant {name!r}; {hint}")
    if not chosen and names:
        raise UnknownQuantError(f"There is no quant {names[0]!r}; quantkit quants lists them.")
    return tuple(quant for quant in quants.values() if quant.name in chosen)
