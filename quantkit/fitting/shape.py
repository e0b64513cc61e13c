"""What a model's memory depends on, and what the names of its tensors and a GGUF's keys tell."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

from quantkit.checkpoint.gguf import HeaderTensor
from quantkit.core.errors import GGUFError
from quantkit.core.printable import quoted

# Layers of a decoder alone, and of an encoder and its decoder, which share their places.
_LAYER = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
# What --n-cpu-moe keeps in RAM: LLM_FFN_EXPS_REGEX of llama.cpp's common/common.h. Shared experts
# (_shexp), which every token uses, are none of these.
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch|)exps(?:\.|$)")
_MOST = 2**31 - 1  # of anything that a header counts: llama.cpp has 32 bits
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a model that its memory depends on.

    ``n_kv_heads``, ``key_length`` and ``value_length`` are None where layers differ in them, or
    have no attention; what their caches take then only llama.cpp knows.
    """

    arch: str
    n_layers: int
    n_kv_heads: int | None
    key_length: int | None
    value_length: int | None
    hidden_size: int
    intermediate_size: int
    n_vocab: int
    n_ctx_train: int
    n_experts: int = 0
    n_experts_used: int = 0


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class Tensors:
    """The tensors of a GGUF by name, with their shapes; all quants of a model have the same."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def n_elements(self) -> int:
        """Elements of all of them."""
        return sum(map(prod, self.shapes))

    def __iter__(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Each name with its shape."""
        return zip(self.names, self.shapes, strict=True)


@lru_cache(maxsize=2**14)
def layer_of(name: str) -> int | None:
    """The layer that a tensor is of, by its name in GGUF; None outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


@lru_cache(maxsize=2**14)
def is_expert(name: str) -> bool:
    """Whether a tensor holds experts of which a token uses some."""
    return _EXPERTS.search(name) is not None


def is_unquantized(tensors: Iterable[HeaderTensor]) -> bool:
    """Whether all matrices are floats, so that every quant can be made of them."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    return bool(matrices) and all(tensor.encoding.name in _FLOATS for tensor in matrices)


def shape_of_header(
    file: Path, metadata: Mapping[str, Any], tensors: Sequence[HeaderTensor]
) -> Shape:
    """The shape of the model in a GGUF, of any architecture.

    Raises:
        GGUFError: it holds no model, or gives a number that no model has.

    """
    keys = _Keys(file, metadata)
    experts = keys.number("expert_count", 0, least=0)
    used = max(keys.per_layer("expert_used_count", 0))
    if not min(experts, 1) <= used <= experts:
        raise GGUFError(
            f"{file} gives {keys.arch}.expert_used_count as {used} and {keys.arch}.expert_count as "
            f"{experts}, which no model has; download it again, or make it again."
        )
    hidden = keys.number("embedding_length")
    heads = keys.alike("attention.head_count", 0)
    kv_heads = keys.alike("attention.head_count_kv", heads) if heads else None
    length = hidden // heads if heads else None
    embedding = next((t for t in tensors if t.name == "token_embd.weight"), None)
    layers = keys.number("block_count")
    return Shape(
        arch=keys.arch,
        n_layers=max(layers, keys.number("decoder_block_count", layers)),
        n_kv_heads=kv_heads or None,
        key_length=keys.alike("attention.key_length", length) if kv_heads else None,
        value_length=keys.alike("attention.value_length", length) if kv_heads else None,
        hidden_size=hidden,
        intermediate_size=max(keys.per_layer("feed_forward_length", 0)),
        n_vocab=embedding.shape[0] if embedding else keys.number("vocab_size", 0, least=0),
        n_ctx_train=keys.number("context_length"),
        n_experts=experts,
        n_experts_used=used,
    )


def count_active(file: Path, metadata: Mapping[str, Any], tensors: Tensors) -> int:
    """Elements that a token uses: of experts, as many as are chosen in their layer."""
    used = _Keys(file, metadata).per_layer("expert_used_count", 0)
    active = 0
    for name, shape in tensors:
        share, whole = 1, 1
        if is_expert(name):
            whole, layer = shape[0], layer_of(name) or 0
            share = min(used[layer] if layer < len(used) else used[-1], whole)
        active += prod(shape) * share // whole
    return active


class _Keys:
    """Whole numbers of one architecture, from a GGUF's metadata."""

    def __init__(self, file: Path, metadata: Mapping[str, Any]) -> None:
        kind = metadata.get("general.type", "model")
        if kind == "imatrix":
            raise GGUFError(
                f"{file} is an importance matrix and no model; give it with --imatrix, beside a "
                "model."
            )
        arch = metadata.get("general.architecture")
        if kind != "model" or arch == "clip":
            what = "mmproj" if arch == "clip" else str(kind)
            raise GGUFError(
                f"{file} is not a model but a part of one, of type {quoted(what)}; give the model."
            )
        if not isinstance(arch, str):
            raise GGUFError(f"{file} does not say which architecture it is; make it again.")
        self.arch = arch
        self._file, self._metadata = file, metadata

    def number(self, key: str, default: int | None = None, least: int = 1) -> int:
        """The one whole number under a key."""
        value = self._metadata.get(f"{self.arch}.{key}", default)
        if value is None:
            raise GGUFError(
                f"{self._file} does not give {self.arch}.{key}, without which llama.cpp does not "
                "load it; make it again."
            )
        return self._checked(key, value, least)

    def per_layer(self, key: str, default: int) -> list[int]:
        """The numbers under a key: one per layer, or one for all of them."""
        value = self._metadata.get(f"{self.arch}.{key}", default)
        values = value if isinstance(value, list) and value else [value]
        return [self._checked(key, one, 0) for one in values]

    def alike(self, key: str, default: int | None) -> int | None:
        """The number that all layers have, None where they differ."""
        if default is None and f"{self.arch}.{key}" not in self._metadata:
            return None
        values = set(self.per_layer(key, default or 0))
        return values.pop() if len(values) == 1 else None

    def _checked(self, key: str, value: object, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise GGUFError(
                f"{self._file} gives {self.arch}.{key} as {quoted(value)}, which is not one whole "
                "number; download it again, or make it again."
            )
        if not least <= value <= _MOST:
            raise GGUFError(
                f"{self._file} gives {self.arch}.{key} as {value}, which no model has; download it "
                "again, or make it again."
            )
        return value
