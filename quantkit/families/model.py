"""What a family says about a model: its hyperparameters and its target tensors."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

_LIMITS = ("input_min", "input_max", "output_min", "output_max")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one source matrix: where one matrix of a target comes from.

    ``matrix`` is the index along the first dimension of a fused 3-D source, None for a 2-D or 1-D
    one; ``row`` is the first row taken within that matrix.
    """

    source: str
    row: int
    rows: int
    matrix: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the output, and where its values come from.

    ``shape`` is row-major: ``(n,)``, ``(rows, columns)`` or ``(experts, rows, columns)``; GGUF
    stores it reversed. ``blocks`` has one entry per matrix. Where ``rope_heads`` is above 0, the
    rows of each head are interleaved (see ``build.units``). A target with ``values`` is computed
    from the config and has no blocks. ``stored`` is the encoding, by ggml's name, that it has in an
    unquantized GGUF and that it keeps where no quant touches it. ``published`` are the names of its
    matrices in a folder for transformers, and ``linear`` says whether they are of linear layers,
    where that is known from transformers and not from the role.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    layer: int | None = None
    blocks: tuple[Block, ...] = ()
    rope_heads: int = 0
    values: tuple[float, ...] = ()
    stored: str = "F32"
    published: tuple[str, ...] = ()
    linear: bool | None = None

    @property
    def columns(self) -> int:
        """Elements per row."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows over all matrices."""
        return prod(self.shape[:-1])

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_limit(self) -> bool:
        """Whether it is what activations are held within, which may be infinite (Gemma 4's)."""
        return self.role.endswith(_LIMITS)

    @property
    def is_linear(self) -> bool:
        """Whether it is the matrices of linear layers within a decoder layer, the router aside.

        That is what GPTQ and bitsandbytes quantize.
        """
        if self.linear is not None:
            return self.linear
        is_matrix = self.role.startswith(("attn_", "ffn_")) and len(self.shape) > 1
        return is_matrix and self.role != "ffn_gate_inp"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: its base, and how it is stretched for long contexts.

    ``divisors`` has a number per frequency, by which it is divided (empty: none is), and
    ``magnitude`` is what sine and cosine are multiplied by. ``form`` is the scaling that llama.cpp
    is told to do, with its ``factor`` and ``original_context``; where it is empty, the divisors
    themselves are written. ``longrope`` has ``long_divisors`` for longer texts than the original
    context. ``scaling`` is what config.json says.
    """

    theta: float
    scaling: Mapping[str, Any]
    form: str = ""
    factor: float | None = None
    original_context: int | None = None
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The numbers of a decoder-only transformer, under the names that config.json uses."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    states_head_dim: bool  # whether head lengths are written out in the metadata
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    sliding_window: int | None  # tokens that attention looks back over; None for all
    full_layers: frozenset[int]  # layers that look back over all of them nevertheless
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    num_local_experts: int = 0
    num_experts_per_tok: int = 0

    def window(self, layer: int) -> int | None:
        """Tokens that a layer's attention looks back over; None for all."""
        return None if layer in self.full_layers else self.sliding_window

    @property
    def facts(self) -> "Facts":
        """What type rules ask of it."""
        gqa = self.num_attention_heads // self.num_key_value_heads
        layers, experts = self.num_hidden_layers, self.num_local_experts
        return Facts(layers, experts, gqa, is_70b=layers == 80 and gqa > 1 and experts != 8)


@dataclass(frozen=True, slots=True)
class Facts:
    """What llama-quantize's type rules ask of a model, beyond its architecture and its tensors.

    ``gqa`` is the number of query heads per key-value head in the first layer, 0 where that has no
    attention. ``is_70b`` is llama.cpp's LLM_TYPE_70B, which goes by the number of layers.
    """

    n_layers: int
    n_experts: int = 0
    gqa: int = 1
    is_70b: bool = False


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One metadata entry of a GGUF: its key, and key, type and value as they lie in the file."""

    key: str
    packed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as a GGUF holds it: architecture, tensors, keys, and the facts that rules ask for.

    ``family`` is what people call its kind, ``arch`` its architecture's name in GGUF. ``sources``
    are the tensors that it is made of, with their shapes. ``keys`` say how it computes; what it is
    called and its vocabulary come with them only where a GGUF is the source. ``remarks`` are
    sentences about what llama.cpp will not do as the original does. ``unquantized`` are linear
    layers that formats for transformers leave alone, lm_head aside, as readers' lists name them.
    """

    family: str
    arch: str
    sources: Mapping[str, tuple[int, ...]]
    targets: tuple[Target, ...]
    facts: Facts
    keys: tuple[KeyValue, ...]
    remarks: tuple[str, ...] = ()
    unquantized: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Weights of the checkpoint (values computed from the config are not counted)."""
        return sum(prod(shape) for shape in self.sources.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder(Model):
    """A model whose layers quantkit can compute by itself, from its hyperparameters."""

    hparams: Hyperparameters


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture: the class names it goes by, and how to make a config concrete.

    ``describe(config, names)`` gets the checkpoint's tensor names, because one architecture is
    saved in several layouts.
    """

    name: str
    architectures: tuple[str, ...]
    describe: Callable[[Mapping[str, Any], Collection[str]], Decoder]
