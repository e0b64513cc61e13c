"""Names of tensors with their layers put together: ``blk.0-3,7.attn_k.weight``.

A recipe says the same of many layers, and so it is short enough to be read.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from quantkit.core.errors import PlanError
from quantkit.core.printable import quoted

MOST_LAYERS = 10_000
"""Layers of one span at most: no model has as many."""

_LAYERED = re.compile(r"((?:enc\.|dec\.)?blk)\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)
_RUN = r"(?:0|[1-9][0-9]{0,5})(?:-(?:0|[1-9][0-9]{0,5}))?"
_SPAN = re.compile(rf"((?:enc\.|dec\.)?blk)\.({_RUN}(?:,{_RUN})*)\.(.+)", re.DOTALL)
_PLAIN = re.compile(r"[a-z0-9_\-]")
_SPELLED_OUT = re.compile(r"[A-Z\s=\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Tensors of one kind in some layers, ``layers`` rising; or one outside of layers, without any.

    ``stem`` and ``rest`` are what stands before and behind the layer; outside of layers ``rest`` is
    the whole name.
    """

    stem: str
    rest: str
    layers: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, one by one."""
        if not self.layers:
            return (self.rest,)
        return tuple(f"{self.stem}.{layer}.{self.rest}" for layer in self.layers)

    @property
    def shown_layers(self) -> str:
        """The layers as ``0-3,7``; nothing outside of layers."""
        # Within a run, layer and place differ by the same.
        runs = groupby(enumerate(self.layers), lambda place: place[1] - place[0])
        ends = [[layer for _, layer in run] for _, run in runs]
        return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ends)

    @property
    def text(self) -> str:
        """The span as recipes have it, and `parse_span` reads it."""
        return f"{self.stem}.{self.shown_layers}.{self.rest}" if self.layers else self.rest

    @property
    def pattern(self) -> str:
        """The regular expression that llama-quantize finds these tensors by, and no others.

        It is anchored, and everything in a name stands for itself. llama-quantize puts patterns in
        lower case and ends them at white space and at the first ``=``, so those are spelled out.
        """
        if not self.layers:
            return f"^{_escaped(self.rest)}$"
        layers = "|".join(map(str, self.layers))
        group = layers if len(self.layers) == 1 else f"(?:{layers})"
        return rf"^{_escaped(self.stem)}\.{group}\.{_escaped(self.rest)}$"


def span_together(names: Iterable[str]) -> list[Span]:
    """The fewest spans of names that are each there once; those outside of layers come first."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = _LAYERED.fullmatch(name)
        stem, rest = (match[1], match[3]) if match else ("", name)
        found = layers.setdefault((stem, rest), [])
        if match:
            found.append(int(match[2]))
    return sorted(Span(*key, tuple(sorted(found))) for key, found in layers.items())


def parse_span(text: str) -> Span:
    """The span that a text such as ``blk.0-3,7.attn_k.weight`` stands for; else the name itself.

    Raises:
        PlanError: its layers do not rise, or are more than models have.

    """
    match = _SPAN.fullmatch(text)
    if match is None:
        return Span("", text, ())
    ends = [tuple(map(int, run.split("-"))) for run in match[2].split(",")]
    flat: Sequence[int] = [end for run in ends for end in run]
    rises = all(before < after for before, after in pairwise(flat))
    if not rises or flat[-1] >= MOST_LAYERS:
        raise PlanError(
            f"{quoted(text)} names layers out of order, or more than {MOST_LAYERS:,}; write "
            "them like blk.0-3,7.attn_k.weight."
        )
    layers = tuple(layer for run in ends for layer in range(run[0], run[-1] + 1))
    return Span(match[1], match[3], layers)


def _escaped(name: str) -> str:
    return "".join(map(_escaped_character, name))


def _escaped_character(character: str) -> str:
    if _PLAIN.fullmatch(character) or not character.isascii():
        return character
    if _SPELLED_OUT.fullmatch(character):
        return f"\\x{ord(character):02x}"
    return f"\\{character}"
