"""What decides the encoding of every tensor: a mixture of llama-quantize's, and changes to it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from quantkit.core.errors import PlanError
from quantkit.encodings.encoding import Encoding, encodings
from quantkit.planning.quants import Quant

# Formats that ggml computes with and no kernel writes.
NEVER_STORED = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})

# POSIX's classes inside brackets, as std::regex reads them in the C locale.
_CLASS = re.compile(r"\[:(\w+):\]")
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "d": "0-9",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "s": r"\s",
    "space": r"\s",
    "upper": "A-Z",
    "w": r"\w",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True)
class Override:
    """``--tensor-type PATTERN=TYPE``: tensors whose name contains a match get this encoding."""

    pattern: re.Pattern[str]
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """How the weights of GGUFs are encoded.

    A ``tensor_type`` is a ``PATTERN=TYPE``, and types count whatever the quant. ``imatrix`` names
    importance matrices, which add up; ``Path("auto")`` alone has one made first. ``mmproj`` is the
    type of the vision or audio part, ``none`` to leave it out.
    """

    kernel: Annotated[str, Meta(pattern="^(fast|ggml)$")] = "fast"
    search: Annotated[str, Meta(pattern="^(ggml|best)$")] = "ggml"
    tensor_type: tuple[str, ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    imatrix: tuple[Path, ...] = ()
    mmproj: str | None = None
    allow_requantize: bool = False

    def parse_types(self) -> tuple[tuple[Override, ...], Encoding | None, Encoding | None]:
        """What is asked for by patterns, for the output and for the embeddings.

        Raises:
            PlanError: a pattern or a type is none.

        """
        output, embedding = self.output_tensor_type, self.token_embedding_type
        return (
            tuple(map(parse_override, self.tensor_type)),
            parse_encoding(output, "--output-tensor-type") if output is not None else None,
            parse_encoding(embedding, "--token-embedding-type") if embedding is not None else None,
        )


_AS_USUAL = EncodingOptions()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the encoding of every tensor of a model.

    ``mixture`` is the name of a file type of llama-quantize's, whose rules choose, and ``encoding``
    what most weights get by them. ``overrides`` come before the rules, the first that matches;
    ``output`` and ``token_embedding`` before both, as llama-quantize's options of these names do.
    ``types`` are the encodings of single tensors by their whole names, which come before overrides:
    what a searched recipe says. ``record`` is what a manifest keeps of it.
    """

    mixture: str
    encoding: Encoding
    output: Encoding | None = None
    token_embedding: Encoding | None = None
    overrides: tuple[Override, ...] = ()
    types: Mapping[str, Encoding] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def named(self, tensor: str) -> Encoding | None:
        """The encoding that is asked for a tensor by its name, None where rules choose."""
        if tensor in self.types:
            return self.types[tensor]
        if not self.overrides:
            return None
        return next((o.encoding for o in self.overrides if o.pattern.search(tensor)), None)


def recipe_of(quant: Quant, options: EncodingOptions = _AS_USUAL) -> Recipe:
    """The recipe of a quant, with what a user wants otherwise, which comes before a variant's.

    Raises:
        PlanError: what is wanted is no type.

    """
    overrides, output, embedding = options.parse_types()
    output, embedding = output or quant.output, embedding or quant.token_embedding
    return Recipe(quant.mixture, quant.encoding, output, embedding, overrides)


def parse_override(text: str) -> Override:
    """An override from ``PATTERN=TYPE``, such as ``attn_v=q8_0`` or ``blk.0.ffn_.*=q6_k``.

    As in llama-quantize, the pattern is lowered and searched for anywhere in the name.

    Raises:
        PlanError: it has not that form, or names no encoding for weights.

    """
    pattern, equals, kind = text.rpartition("=")
    chosen = _named(kind)
    if not equals or not pattern or chosen is None:
        raise PlanError(f"--tensor-type {text!r} must be PATTERN=TYPE, for example attn_v=q8_0.")
    try:
        return Override(re.compile(_with_classes(pattern.lower())), chosen)
    except re.error as error:
        raise PlanError(
            f"--tensor-type {pattern!r} is not a regular expression: {error}."
        ) from None


def parse_encoding(text: str, option: str) -> Encoding:
    """The encoding that an option names, such as ``q8_0``; case does not matter.

    Raises:
        PlanError: it names none for weights.

    """
    chosen = _named(text)
    if chosen is None:
        raise PlanError(
            f"{option} {text!r} is not a type of weights; give one such as q8_0 or f16."
        )
    return chosen


def _named(kind: str) -> Encoding | None:
    chosen = encodings().get(kind.upper())
    return None if chosen is None or chosen.name in NEVER_STORED else chosen


def _with_classes(pattern: str) -> str:
    """A pattern whose ``[[:digit:]]`` and the like, which llama-quantize knows, are spelled out."""
    return _CLASS.sub(lambda match: _CLASSES.get(match[1], match[0]), pattern)
