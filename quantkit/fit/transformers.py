"""Formats that transformers loads: their sizes and modelled memory, beside the GGUFs.

Weights of bitsandbytes quants are what a build with its defaults stores, to the byte. GPTQ is
modelled: 4-bit weights, per group of 128 a float16 scale and a 4-bit zero point, per input row an
int32 group index (GPTQModel's file format, which keeps ``desc_act``). Embeddings, norms, the router
and the output stay in 16 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.families.model import Model, Target
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

    return TransformersFormat(name, weight_bytes, "exact", "GPTQ in groups of 128, for vLLM")


def _bnb(name: str) -> TransformersFormat:
    def weight_bytes(model: Model) -> int:
        return outline_bnb(model, folder_quants()[name], BnbOptions()).n_bytes

    return TransformersFormat(name, weight_bytes, "exact", "bitsandbytes", _EXPERTS)


def _modelled(name: str, matrix_bytes: Callable[[int, int], int], note: str) -> TransformersFormat:
    def weight_bytes(model: Model) -> int:
        return sum(_bytes(target, matrix_bytes) for target in model.targets)

    return TransformersFormat(name, weight_bytes, "modelled", note)


FORMATS = (
    _modelled("fp16", lambda r, c: 2 * r * c, "unquantized"),
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


def _bytes(target: Target, matrix_bytes: Callable[[int, int], int]) -> int:
    is_expert = target.role.endswith("_exps")
    is_matrix = target.role.startswith(("attn_", "ffn_")) and len(target.shape) > 1
    if target.role == "ffn_gate_inp" or not is_matrix:
        return 2 * target.n_elements
    n_matrices = target.shape[0] if is_expert else 1
    return n_matrices * matrix_bytes(target.n_rows // n_matrices, target.columns)
