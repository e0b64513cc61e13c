"""Formats that transformers loads: their sizes and modelled memory, beside the GGUFs.

Weights are what a build with the defaults stores, to the byte; where the defaults do not divide a
model's rows, with the blocks or groups nearest to them that do.
"""

from quantkit.families.model import Decoder
from quantkit.fit.memory import GPU_OVERHEAD, Label, Part
from quantkit.fit.probe import Settings
from quantkit.fit.subject import Shape, Stored
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.bnb.plan import block_sizes, outline_bnb
from quantkit.formats.gptq.plan import GptqOptions, group_sizes, outline_gptq
from quantkit.plan.quants import folder_quants

_EXPERTS = (
    "; load it with quantkit, plain load_in_4bit and load_in_8bit leave the experts in 16 bits"
)
_GPTQ_EXPERTS = "; transformers 5 fills the experts with random numbers, see docs/gptq.md"


def formats_of(model: Decoder) -> tuple[Stored, ...]:
    """What a model takes in each format; those that cannot hold it have no bytes, and say why."""
    elements = sum(target.n_elements for target in model.targets)
    return (
        Stored("fp16", 2 * elements, "modelled", "unquantized"),
        _bnb(model, "bnb-int8"),
        _bnb(model, "bnb-nf4"),
        _gptq(model, "gptq-int4"),
    )


def _bnb(model: Decoder, name: str) -> Stored:
    experts = _EXPERTS if model.hparams.num_local_experts else ""
    usual = BnbOptions().block_size
    size = _nearest(block_sizes(model), usual)
    if name == "bnb-int8":
        size = usual  # it has a scale per row
    if size is None:
        note = "bitsandbytes; no block size divides this model's rows"
        return Stored(name, None, "exact", note)
    n_bytes = outline_bnb(model, folder_quants()[name], BnbOptions(block_size=size)).n_bytes
    option = "" if size == usual else f" with --block-size {size}"
    return Stored(name, n_bytes, "exact", f"bitsandbytes{option}{experts}")


def _gptq(model: Decoder, name: str) -> Stored:
    usual = GptqOptions().group_size
    size = _nearest(group_sizes(model), usual)
    if size is None:
        return Stored(name, None, "exact", "GPTQ; it stores matrices of multiples of 32 only")
    options = GptqOptions(group_size=size)
    n_bytes = outline_gptq(model, folder_quants()[name], options, {}).n_bytes
    option = "" if size == usual else f" (--group-size {size})"
    experts = _GPTQ_EXPERTS if model.hparams.num_local_experts else ""
    return Stored(name, n_bytes, "exact", f"GPTQ in groups of {size}{option}{experts}")


def _nearest(sizes: tuple[int, ...], usual: int) -> int | None:
    """The usual size where it is one of them, else the largest below it."""
    return max((size for size in sizes if size <= usual), default=None)


def parts(n_bytes: int, label: Label, shape: Shape, settings: Settings) -> tuple[Part, ...]:
    """What generating with transformers takes on a GPU; all but the weights is modelled.

    The KV cache is 16 bits per number. Activations are those of the widest layer while the whole
    prompt is read at once: gate, up and their product in 16 bits for each expert that a token
    uses, and the hidden state four times over.
    """
    tokens = settings.context * settings.parallel
    lengths = shape.n_kv_heads * (shape.key_length + shape.value_length)
    wide = 3 * shape.intermediate_size * max(1, shape.n_experts_used)
    return (
        Part("weights", "GPU", n_bytes, label),
        Part("KV cache", "GPU", 2 * shape.n_layers * tokens * lengths, "modelled"),
        Part("compute", "GPU", 2 * tokens * (wide + 4 * shape.hidden_size), "modelled"),
        Part("overhead", "GPU", GPU_OVERHEAD, "modelled"),
    )
