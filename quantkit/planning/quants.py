"""Quants by their public names."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from quantkit.core.errors import UnknownQuantError
from quantkit.core.profiles import load_profile
from quantkit.encodings.encoding import Encoding, encoding

# No quant of llama-quantize's: the model unquantized, or in the blocks that it was published in.
SOURCE = "source"

# llama-quantize's own shorthands, and the name that the ladder had first.
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "gguf_all": "ladder"}
_SIZE = re.compile(r"[0-9]{1,2}\.[0-9]{2}bpw")


@dataclass(frozen=True, slots=True)
class Quant:
    """What a user asks for: a public name, and what llama.cpp calls it (``llama_ftype``).

    One that is ``trained_only`` is for models that were trained to its few levels, and no others.
    A variant is what its ``base`` is, but for the types of ``output`` and ``token_embedding``; one
    that was ``searched`` has its base's file type, and types of its own for every tensor.
    """

    name: str
    format: str
    file_type: int
    encoding: Encoding
    groups: tuple[str, ...]
    good_for: str
    trained_only: bool = False
    base: str | None = None
    output: Encoding | None = None
    token_embedding: Encoding | None = None
    searched: bool = False

    @property
    def mixture(self) -> str:
        """The name of llama-quantize's mixture whose rules choose: its own or its base's."""
        return self.base or self.name

    @property
    def in_file_names(self) -> str:
        """What files are called after it: ``Q4_K_M``, or the ``3.42bpw`` of a searched one."""
        return self.name if self.searched else self.name.upper()


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
    profile = load_profile("quants.toml")
    return {name: _from_row(name, row, profile) for name, row in profile.items()}


def _from_row(name: str, row: Mapping[str, Any], profile: Mapping[str, Any]) -> Quant:
    base = row.get("base")
    mixture = row if base is None else profile[base]
    output, embedding = (
        encoding(row[part]) if part in row else None for part in ("output", "token_embedding")
    )
    return Quant(
        name,
        "gguf",
        mixture["file_type"],
        encoding(mixture["encoding"]),
        tuple(row.get("groups", ())),
        row["good_for"],
        row.get("trained_only", False),
        base,
        output,
        embedding,
    )


@cache
def known_quants() -> dict[str, Quant]:
    """Everything that can be asked for by name, best first: `SOURCE`, GGUF quants, folders."""
    kept = "every weight in the type it has in a GGUF or, as llama.cpp's converter says, would have"
    source = Quant(SOURCE, "gguf", -1, encoding("F32"), (), kept)
    return {SOURCE: source, **all_quants(), **folder_quants()}


def searched_quant(base: str, bits_per_weight: float) -> Quant | None:
    """What a searched recipe makes, as a quant; None where there is no such base.

    Args:
        base: the name of the file type that it states.
        bits_per_weight: over all tensors.

    """
    quant = all_quants().get(base)
    if quant is None or quant.base is not None or not quant.encoding.is_block:
        return None
    return replace(
        quant,
        name=f"{bits_per_weight:.2f}bpw",
        groups=(),
        good_for="the least loss that was found for its size",
        base=base,
        searched=True,
    )


def is_size(name: str) -> bool:
    """Whether a name is one that `searched_quant` gives, such as ``3.42bpw``."""
    return _SIZE.fullmatch(name) is not None


@cache
def known_groups() -> dict[str, tuple[str, ...]]:
    """The names of the quants in every group, best first; the smallest group first."""
    quants = all_quants().values()
    groups = {group for quant in quants for group in quant.groups}
    members = {group: tuple(q.name for q in quants if group in q.groups) for group in groups}
    return dict(sorted(members.items(), key=lambda item: len(item[1])))


def find_quants(names: str | Iterable[str]) -> tuple[Quant, ...]:
    """The quants that names and groups stand for, best first, each once; case does not matter.

    A name may be a list with commas; one alone need not be in a list.

    Raises:
        UnknownQuantError: a name that stands for none; a near miss is suggested.

    """
    names = [names] if isinstance(names, str) else list(names)
    quants = known_quants()
    groups = known_groups()
    chosen: set[str] = set()
    for name in (part for listed in names for part in listed.split(",")):
        if not name.strip():
            continue  # a comma at the end
        key = name.strip().lower().replace("-", "_")
        folder = key.replace("_", "-")
        key = folder if folder in quants else _ALIASES.get(key, key)
        if key in quants:
            chosen.add(key)
        elif key in groups:
            chosen.update(groups[key])
        else:
            near = difflib.get_close_matches(key, [*quants, *_ALIASES, *groups], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "quantkit quants lists them."
            raise UnknownQuantError(f"There is no quant {name!r}; {hint}")
    if not chosen and names:
        raise UnknownQuantError(f"There is no quant {names[0]!r}; quantkit quants lists them.")
    return tuple(quant for quant in quants.values() if quant.name in chosen)
