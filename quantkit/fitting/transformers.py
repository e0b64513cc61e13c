"""Formats that transformers loads: their sizes and modelled memory, beside the GGUFs.

Weights are what a build with the defaults stores, to the byte; where the defaults do not divide a
model's rows, with the blocks or groups nearest to them that do.
"""

from math import prod

from quantkit.encodings.encoding import encoding
from quantkit.families.model import Decoder
from quantkit.fitting.memory import GPU_OVERHEAD, Label, MemoryPart
from quantkit.fitting.model import Stored
from quantkit.fitting.probe import Curve
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.shape import Shape, Tensors, layer_of
from quantkit.formats.bnb.codec import BLOCK_SIZES, BnbOptions
from quantkit.formats.bnb.plan import block_sizes, outline_bnb
from quantkit.formats.folder import Alike, one_of_each
from quantkit.formats.gptq.plan import GptqOptions, group_sizes, outline_gptq
from quantkit.planning.quants import folder_quants

_EXPERTS = (
    "; load it with quantkit, plain load_in_4bit and load_in_8bit leave the experts in 16 bits"
)
_GPTQ_EXPERTS = "; transformers 5 fills the experts with random numbers, see docs/gptq.md"

_BY_NAME = "; linear layers by their names in GGUF"
_NOT_LINEAR = ("ffn_gate_inp", "conv", "norm", "_rel_b", "_embd")
_LEAST_LINEAR = 32  # rows and columns
_GROUPS = (32, 64, 128)  # columns of GPTQ's groups up to the usual ones


def formats_of(model: Decoder) -> tuple[Stored, ...]:
    """What a model takes in each format; those that cannot hold it have no bytes, and say why."""
    elements = sum(target.n_elements for target in model.targets)
    alike = one_of_each(model)
    return (
        Stored("fp16", 2 * elements, "modelled", "unquantized"),
        _bnb(alike, "bnb-int8"),
        _bnb(alike, "bnb-nf4"),
        _gptq(alike, "gptq-int4"),
    )


def formats_of_tensors(tensors: Tensors) -> tuple[Stored, ...]:
    """What a model of any architecture would take in each format, from its tensors in GGUF.

    Which of them are linear layers is read from their names and shapes, so all figures are
    modelled. A matrix has 16-bit scales per group in GPTQ, float32 ones in bitsandbytes.
    """
    linear = [shape for name, shape in tensors if _is_linear(name, shape)]
    plain = 2 * tensors.n_elements
    rest = plain - 2 * sum(map(prod, linear))
    found = [Stored("fp16", plain, "modelled", "unquantized")]
    columns = [shape[-1] for shape in linear]
    eight = sum(prod(shape) + 4 * prod(shape[:-1]) for shape in linear)
    found.append(Stored("bnb-int8", rest + eight, "modelled", f"bitsandbytes{_BY_NAME}"))
    blocks = tuple(size for size in BLOCK_SIZES if not any(count % size for count in columns))
    block = _nearest(blocks, BnbOptions().block_size)
    note = f"bitsandbytes{_BY_NAME}" if block else "bitsandbytes; no block size divides its rows"
    four = sum(prod(shape) // 2 + 4 * prod(shape) // (block or 1) for shape in linear)
    found.append(Stored("bnb-nf4", rest + four if block else None, "modelled", note))
    groups = tuple(size for size in _GROUPS if not any(count % size for count in columns))
    group = _nearest(groups, GptqOptions().group_size)
    note = f"GPTQ in groups of {group}{_BY_NAME}"
    if not group or any(shape[-2] % _GROUPS[0] for shape in linear):
        group, note = None, "GPTQ; it stores matrices of multiples of 32 only"
    # Half a byte per weight; per group a scale of 16 bits and a zero of 4; per column its group.
    grouped = sum(
        prod(shape) // 2 + 5 * prod(shape) // (2 * (group or 1)) + 4 * prod(shape) // shape[-2]
        for shape in linear
    )
    found.append(Stored("gptq-int4", rest + grouped if group else None, "modelled", note))
    return tuple(found)


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is matrices of linear layers, and neither a router nor a convolution."""
    is_matrix = len(shape) in (2, 3) and min(shape[-2:]) >= _LEAST_LINEAR
    named = name.endswith(".weight") and not any(word in name for word in _NOT_LINEAR)
    return layer_of(name) is not None and is_matrix and named


def _bnb(alike: Alike, name: str) -> Stored:
    model = alike.model
    experts = _EXPERTS if model.facts.n_experts else ""
    usual = BnbOptions().block_size
    size = _nearest(block_sizes(model), usual)
    if name == "bnb-int8":
        size = usual  # it has a scale per row
    if size is None:
        note = "bitsandbytes; no block size divides this model's rows"
        return Stored(name, None, "exact", note)
    plan = outline_bnb(model, folder_quants()[name], BnbOptions(block_size=size))
    option = "" if size == usual else f" with --block-size {size}"
    return Stored(name, alike.n_bytes(plan), "exact", f"bitsandbytes{option}{experts}")


def _gptq(alike: Alike, name: str) -> Stored:
    model, usual = alike.model, GptqOptions().group_size
    size = _nearest(group_sizes(model), usual)
    if size is None:
        return Stored(name, None, "exact", "GPTQ; it stores matrices of multiples of 32 only")
    options = GptqOptions(group_size=size)
    plan = outline_gptq(model, folder_quants()[name], options, {})
    option = "" if size == usual else f" (--group-size {size})"
    experts = _GPTQ_EXPERTS if model.facts.n_experts else ""
    return Stored(name, alike.n_bytes(plan), "exact", f"GPTQ in groups of {size}{option}{experts}")


def _nearest(sizes: tuple[int, ...], usual: int) -> int | None:
    """The usual size where it is one of them, else the largest below it."""
    return max((size for size in sizes if size <= usual), default=None)


def remembered(curve: Curve) -> int | None:
    """Bytes that llama.cpp's caches would take with 16 bits per number.

    None where all layers are alike, and the shape tells.
    """
    if curve.kv_is_exact:
        return None
    at = curve.at(curve.settings.cells)
    kind = encoding(curve.settings.kv_type.upper())
    return at.kv * 2 * kind.elements // kind.bytes + at.state


def parts(
    n_bytes: int, label: Label, shape: Shape, settings: ContextSettings, kept: int | None = None
) -> tuple[MemoryPart, ...]:
    """What generating with transformers takes on a GPU; all but the weights is modelled.

    The KV cache is 16 bits per number of every layer, unless the bytes that are ``kept`` are given
    (see `remembered`), as for models whose layers are not all alike. Activations are those of the
    widest layer while the whole prompt is read at once: gate, up and their product in 16 bits for
    each expert that a token uses, and the hidden state four times over.
    """
    tokens = settings.context * settings.parallel
    lengths = (shape.n_kv_heads or 0) * ((shape.key_length or 0) + (shape.value_length or 0))
    kv = 2 * shape.n_layers * tokens * lengths if kept is None else kept
    wide = 3 * shape.intermediate_size * max(1, shape.n_experts_used)
    return (
        MemoryPart("weights", "GPU", n_bytes, label),
        MemoryPart("KV cache", "GPU", kv, "modelled"),
        MemoryPart("compute", "GPU", 2 * tokens * (wide + 4 * shape.hidden_size), "modelled"),
        MemoryPart("overhead", "GPU", GPU_OVERHEAD, "modelled"),
    )
