"""Formats that transformers loads: their sizes and modelled memory, beside the GGUFs.

Weights are what a build with the defaults stores, to the byte.
"""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.families.model import Model
from quantkit.fit.memory import GPU_OVERHEAD, Label, Part
from quantkit.fit.probe import Settings
from quantkit.fit.subject import Shape
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.bnb.plan import outline_bnb
from quantkit.formats.gptq.plan import GptqOptions, outline_gptq
from quantkit.plan.quants import folder_quants

_EXPERTS = (
    "; load it with quantkit, plain load_in_4bit and load_in_8bit leave the experts in 16 bits"
)
_GPTQ_EXPERTS = "; transformers 5 fills the experts with random numbers, see docs/gptq.md"


@dataclass(frozen=True, slots=True)
class TransformersFormat:
    """A format by its public name, and the bytes that a model's weights take in it."""

    name: str
    weight_bytes: Callable[[Model], int]
    label: Label  # of the weights
    note: str
    note_on_experts: str = ""

    def describe(self, model: Model) -> str:
        """What the format is, and what to know about it with this model."""
        return self.note + (self.note_on_experts if model.hparams.num_local_experts else "")


def _gptq(name: str) -> TransformersFormat:
    def weight_bytes(model: Model) -> int:
        return outline_gptq(model, folder_quants()[name], GptqOptions(), {}).n_bytes

    return TransformersFormat(name, weight_bytes, "exact", "GPTQ in groups of 128", _GPTQ_EXPERTS)


def _bnb(name: str) -> TransformersFormat:
    def weight_bytes(model: Model) -> int:
        return outline_bnb(model, folder_quants()[name], BnbOptions()).n_bytes

    return TransformersFormat(name, weight_bytes, "exact", "bitsandbytes", _EXPERTS)


def _fp16_bytes(model: Model) -> int:
    return 2 * sum(target.n_elements for target in model.targets)


FORMATS = (
    TransformersFormat("fp16", _fp16_bytes, "modelled", "unquantized"),
    _bnb("bnb-int8"),
    _bnb("bnb-nf4"),
    _gptq("gptq-int4"),
)


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
