"""What a variant takes, part by part: each figure with where it goes and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Literal

from quantkit.fitting.probe import Curve, Held
from quantkit.fitting.shape import Shape, is_expert, layer_of
from quantkit.fitting.variants import Variant
from quantkit.planning.names import OUTPUT, TOKEN_EMBD

# exact: counted in bytes. probed: told by llama.cpp. modelled: estimated; docs/fit.md says how.
Label = Literal["exact", "probed", "modelled"]

MIB, GIB = 2**20, 2**30

# Per GPU in use: the driver's context, kernels and cuBLAS's workspace. It is what llama.cpp keeps
# free on each device when it fits a model by itself (--fit-target, common/common.h).
GPU_OVERHEAD = 1024 * MIB
# The process itself: code, vocabulary, threads' work buffers. Measured as resident memory of
# llama.cpp in a Python process, less its buffers; tests/fitting/test_probe.py repeats it.
HOST_OVERHEAD = 80 * MIB
# Tensors outside the layers that llama.cpp keeps in RAM whatever goes to GPUs, because few of their
# rows are used for a token, and those that it gives to the first layer: the tables
# LLM_TENSOR_LAYER_INPUT and LLM_TENSOR_LAYER_REPEATING of src/llama-arch.cpp.
_INPUTS = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
_OF_FIRST_LAYER = ("token_embd_norm", "per_layer_model_proj", "per_layer_proj_norm")
# Architectures whose embedding does not serve as the output where they have none.
_WITHOUT_OUTPUT = frozenset(
    {
        "bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
        "modern-bert", "eurobert", "bitnet", "clip", "wavtokenizer-dec",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """So many bytes of one kind on one device: ``GPU 0``, ``GPU 1``, ..., or ``RAM``."""

    name: str
    device: str
    n_bytes: int
    label: Label


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class Weights:
    """Tensor bytes by where llama.cpp can put them.

    Per layer what is not an expert, and the experts. ``embedding`` always stays in RAM, with all
    else that is looked up by token. ``output`` counts as one more layer; where a model ties it to
    the embedding, a GPU gets a copy. ``largest`` is the largest matrix in a layer: what a GPU
    borrows at a time while it reads a prompt with weights that lie in RAM.
    """

    embedding: int
    output: int
    tied_output: int
    layers: tuple[int, ...]
    experts: tuple[int, ...]
    largest: int

    @property
    def total(self) -> int:
        """All weights once."""
        return self.embedding + self.output + sum(self.layers) + sum(self.experts)

    @cached_property
    def layers_before(self) -> tuple[int, ...]:
        """What all layers before the n-th take without their experts, the output being the last."""
        output = self.output + self.tied_output
        return tuple(accumulate((*self.layers, output), initial=0))

    @cached_property
    def experts_before(self) -> tuple[int, ...]:
        """What the experts of all layers before the n-th take; the output has none."""
        return tuple(accumulate((*self.experts, 0), initial=0))


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class Beside:
    """What llama.cpp allocates beside the weights at one context, whatever the quant.

    ``kv`` and ``states`` are bytes per layer: its cache, and what it remembers where it is
    recurrent. ``compute`` and ``output`` are bytes. ``gpu_compute`` is one GPU's compute buffer and
    ``host_inputs`` what stays in RAM when all layers are on GPUs. ``projector`` are the weights of
    the vision or audio part, which llama.cpp puts on the first GPU.
    """

    kv: tuple[int, ...]
    states: tuple[int, ...]
    kv_label: Label
    compute: int
    output: int
    gpu_compute: int
    gpu_compute_label: Label
    host_inputs: int
    projector: int = 0

    @cached_property
    def kv_before(self) -> tuple[int, ...]:
        """What the caches of all layers before the n-th take; the output has none."""
        return tuple(accumulate((*self.kv, 0), initial=0))

    @cached_property
    def states_before(self) -> tuple[int, ...]:
        """What the states of all layers before the n-th take; the output has none."""
        return tuple(accumulate((*self.states, 0), initial=0))


@dataclass(frozen=True, slots=True)
class Needs:
    """A variant at one context: its weights, and what is allocated beside them."""

    weights: Weights
    beside: Beside


def weigh(variant: Variant, shape: Shape, unused: frozenset[str] = frozenset()) -> Weights:
    """Sort a variant's tensors, without ``unused`` ones, by where llama.cpp puts them."""
    places, ties = _places(variant.tensors.names, shape.n_layers, shape.arch, unused)
    held = [0] * (_LAYERS + 2 * shape.n_layers)
    largest = tied = 0
    for n_bytes, place, name in zip(variant.sizes, places, variant.tensors.names, strict=True):
        held[place] += n_bytes
        if place >= _LAYERS:
            largest = max(largest, n_bytes)
        elif ties and place == _EMBEDDING and name == TOKEN_EMBD:
            tied = n_bytes
    layers = held[_LAYERS : _LAYERS + shape.n_layers]
    layers[0] += held[_WITH_FIRST]
    experts = held[_LAYERS + shape.n_layers :]
    return Weights(held[_EMBEDDING], held[_OUTPUT], tied, tuple(layers), tuple(experts), largest)


# Where a tensor goes: nowhere, or what its bytes are counted with. Each layer has a place for what
# is not an expert, and after all of these one for its experts.
_UNUSED, _EMBEDDING, _OUTPUT, _WITH_FIRST, _LAYERS = range(5)


@lru_cache(maxsize=8)
def _places(
    names: tuple[str, ...], n_layers: int, arch: str, unused: frozenset[str]
) -> tuple[tuple[int, ...], bool]:
    """The place of each tensor, and whether the embedding serves as the output, too."""
    found = []
    for name in names:
        base, layer = name.rpartition(".")[0], layer_of(name)
        if name in unused:
            found.append(_UNUSED)
        elif layer is not None and layer < n_layers:
            found.append(_LAYERS + layer + (n_layers if is_expert(name) else 0))
        elif base in _INPUTS:
            found.append(_EMBEDDING)
        elif base in _OF_FIRST_LAYER:
            found.append(_WITH_FIRST)
        else:
            found.append(_OUTPUT)
    has_output = any(
        place == _OUTPUT and name == OUTPUT for place, name in zip(found, names, strict=True)
    )
    return tuple(found), not has_output and arch not in _WITHOUT_OUTPUT


def needs(weights: Weights, curve: Curve, cells: int) -> Needs:
    """A variant's needs at a context of so many cells per sequence."""
    return Needs(weights, _beside(curve, cells))


@lru_cache(maxsize=256)
def _beside(curve: Curve, cells: int) -> Beside:
    """What a context takes.

    Without a GPU to ask, a GPU's compute buffer is taken to be the CPU's: the graph is the same,
    and a GPU keeps the same activations. The inputs that stay in RAM are a batch of embeddings
    (float32) and an attention mask for every kind of cache, or for the batch itself where there is
    none (float16, batch by context).
    """
    shape, probe, batch = curve.shape, curve.at(cells), curve.batch(cells)
    seen = sum(held.cells for held in probe.caches if held.n_bytes)
    if not probe.caches and not probe.states:
        seen = batch
    mask = 2 * batch * seen * curve.settings.parallel
    return Beside(
        kv=_by_layer(probe.caches, shape.n_layers),
        states=_by_layer(probe.states, shape.n_layers),
        kv_label="exact" if curve.kv_is_exact else "probed",
        compute=probe.compute,
        output=probe.output,
        gpu_compute=probe.compute if probe.gpu_compute is None else probe.gpu_compute,
        gpu_compute_label="modelled" if probe.gpu_compute is None else "probed",
        host_inputs=4 * batch * shape.hidden_size + mask,
        projector=curve.projector,
    )


def _by_layer(memory: Sequence[Held], n_layers: int) -> tuple[int, ...]:
    """Bytes per layer: what several layers have together is taken to be as much in each."""
    found = [0] * n_layers
    for held in memory:
        layers = [layer for layer in held.layers if layer < n_layers] or range(n_layers)
        each, rest = divmod(held.n_bytes, len(layers))
        for i, layer in enumerate(layers):
            found[layer] += each + (i < rest)
    return tuple(found)


def total(parts: Sequence[MemoryPart], device: str | None = None) -> int:
    """Bytes of all parts, or of those on one device."""
    return sum(part.n_bytes for part in parts if device in (None, part.device))
