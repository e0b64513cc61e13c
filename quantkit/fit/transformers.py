"""Formats that transformers loads: modelled sizes and memory, for comparison with the GGUFs.

Block formats by their papers and libraries. GPTQ: 4-bit weights, per group of 128 a float16 scale
and a 4-bit zero point, per input row an int32 group index (GPTQModel's file format, which keeps
``desc_act``). bitsandbytes NF4: 4 bits and a float32 absmax per 64 (Dettmers et al. 2023, without
double quantization, the default of ``BitsAndBytesConfig``). bitsandbytes int8: 8 bits and a
float32 scale per row (Dettmers et al. 2022). Embeddings, norms, the router and the output stay in
16 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from quantkit.families.model import Model, Target
from quantkit.fit.memory import GPU_OVERHEAD, Part
from quantkit.fit.probe import Settings
from quantkit.fit.subject import Shape

_GROUP, _NF4_BLOCK = 128, 64


@dataclass(frozen=True, slots=True)
class TransformersFormat:
    """A format by its public name, and the bytes that a matrix takes in it."""

    name: str
    matrix_bytes: Callable[[int, int], int]
    quantizes_experts: bool
    note: str

    def describe(self, model: Model) -> str:
        """What the format is, and what it leaves alone in this model."""
        if self.quantizes_experts or not model.hparams.num_local_experts:
            return self.note
        return f"{self.note}; transformers 5 leaves the experts in 16 bits"


def _gptq(rows: int, columns: int) -> int:
    groups = -(-columns // _GROUP)
    return rows * columns // 2 + groups * rows * 2 + groups * rows // 2 + 4 * columns


def _nf4(rows: int, columns: int) -> int:
    return rows * columns // 2 + 4 * -(-rows * columns // _NF4_BLOCK)


FORMATS = (
    TransformersFormat("fp16", lambda r, c: 2 * r * c, True, "unquantized"),
    TransformersFormat("bnb-int8", lambda r, c: r * c + 4 * r, False, "bitsandbytes"),
    TransformersFormat("bnb-nf4", _nf4, False, "bitsandbytes"),
    TransformersFormat("gptq-int4", _gptq, True, "GPTQ in groups of 128, for vLLM"),
)


def weight_bytes(model: Model, kind: TransformersFormat) -> int:
    """Bytes of all weights in a format."""
    return sum(_bytes(target, kind) for target in model.targets)


def parts(n_bytes: int, shape: Shape, settings: Settings) -> tuple[Part, ...]:
    """What generating with transformers takes on a GPU; everything here is modelled.

    The KV cache is 16 bits per number. Activations are those of the widest layer while the whole
    prompt is read at once: gate, up and their product in 16 bits for each expert that a token
    uses, and the hidden state four times over.
    """
    tokens = settings.context * settings.parallel
    lengths = shape.n_kv_heads * (shape.key_length + shape.value_length)
    wide = 3 * shape.intermediate_size * max(1, shape.n_experts_used)
    return (
        Part("weights", "GPU", n_bytes, "modelled"),
        Part("KV cache", "GPU", 2 * shape.n_layers * tokens * lengths, "modelled"),
        Part("compute", "GPU", 2 * tokens * (wide + 4 * shape.hidden_size), "modelled"),
        Part("overhead", "GPU", GPU_OVERHEAD, "modelled"),
    )


def _bytes(target: Target, kind: TransformersFormat) -> int:
    is_expert = target.role.endswith("_exps")
    is_matrix = target.role.startswith(("attn_", "ffn_")) and len(target.shape) > 1
    if target.role == "ffn_gate_inp" or not is_matrix or (is_expert and not kind.quantizes_experts):
        return 2 * target.n_elements
    n_matrices = target.shape[0] if is_expert else 1
    return n_matrices * kind.matrix_bytes(target.n_rows // n_matrices, target.columns)
