"""The decoder that Llama, Mistral and Mixtral share: all are architecture ``llama`` in GGUF.

Tensor names on the GGUF side follow ``gguf-py/gguf/constants.py`` of llama.cpp; those on the
checkpoint side follow the modeling files of transformers.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from quantkit.core.errors import CheckpointError
from quantkit.families.model import Block, Hyperparameters, Model, Rope, Target

# "default" and "dynamic" leave no trace in GGUF: the model runs unscaled up to its trained length.
ROPE_TYPES = ("default", "linear", "yarn", "llama3", "dynamic")

# (sources with their shapes, targets) of one layer's feed-forward part
FeedForward = Callable[
    [int, Hyperparameters, Mapping[str, Any], Collection[str]],
    tuple[dict[str, tuple[int, ...]], list[Target]],
]


def describe_decoder(
    family: str,
    config: Mapping[str, Any],
    names: Collection[str],
    defaults: Mapping[str, Any],
    feed_forward: FeedForward,
) -> Model:
    """A decoder-only model with rotary attention, RMS norms and the given feed-forward part.

    Args:
        family: its name in quantkit.
        config: config.json.
        names: the checkpoint's tensor names.
        defaults: values transformers assumes where config.json is silent.
        feed_forward: describes the feed-forward tensors of one layer.

    Raises:
        CheckpointError: a number is missing, of the wrong kind, or contradicts another.

    """
    hparams = read_hyperparameters({**defaults, **_without_nulls(config, defaults)})
    sources: dict[str, tuple[int, ...]] = {}
    targets: list[Target] = []

    def take(
        source: str,
        name: str,
        role: str,
        shape: tuple[int, ...],
        layer: int | None = None,
        rope_heads: int = 0,
    ) -> None:
        sources[source] = shape
        rows = shape[0] if len(shape) > 1 else 1
        blocks = (Block(source, 0, rows),)
        targets.append(Target(name, role, shape, layer, blocks, rope_heads))

    hidden = hparams.hidden_size
    heads, kv_heads = hparams.num_attention_heads, hparams.num_key_value_heads
    q_rows, kv_rows = heads * hparams.head_dim, kv_heads * hparams.head_dim
    embeddings = (hparams.vocab_size, hidden)
    take("model.embed_tokens.weight", "token_embd.weight", "token_embd", embeddings)
    for n in range(hparams.num_hidden_layers):
        at, blk = f"model.layers.{n}", f"blk.{n}"
        take(f"{at}.input_layernorm.weight", f"{blk}.attn_norm.weight", "attn_norm", (hidden,), n)
        for part, gguf_part, shape, rope_heads in (
            ("q_proj", "attn_q", (q_rows, hidden), heads),
            ("k_proj", "attn_k", (kv_rows, hidden), kv_heads),
            ("v_proj", "attn_v", (kv_rows, hidden), 0),
            ("o_proj", "attn_output", (hidden, q_rows), 0),
        ):
            source = f"{at}.self_attn.{part}"
            take(f"{source}.weight", f"{blk}.{gguf_part}.weight", gguf_part, shape, n, rope_heads)
            if config.get("attention_bias") or f"{source}.bias" in names:
                name, role = f"{blk}.{gguf_part}.bias", f"{gguf_part}_bias"
                take(f"{source}.bias", name, role, shape[:1], n, rope_heads)
        norm = f"{at}.post_attention_layernorm.weight"
        take(norm, f"{blk}.ffn_norm.weight", "ffn_norm", (hidden,), n)
        layer_sources, layer_targets = feed_forward(n, hparams, config, names)
        sources.update(layer_sources)
        targets.extend(layer_targets)
    take("model.norm.weight", "output_norm.weight", "output_norm", (hidden,))
    # A checkpoint may tie its embeddings and still carry lm_head: as the converter does, what is
    # there is written, and llama.cpp ties only where it is absent.
    if "lm_head.weight" in names or not hparams.tie_word_embeddings:
        take("lm_head.weight", "output.weight", "output", embeddings)
    if factors := llama3_rope_factors(hparams):
        targets.append(Target("rope_freqs.weight", "rope_freqs", (len(factors),), values=factors))
    window = config.get("sliding_window", defaults.get("sliding_window"))
    remarks = tuple(_window_remarks(window, hparams.max_position_embeddings))
    return Model(family, "llama", hparams, sources, tuple(targets), remarks)


def _window_remarks(window: Any, context: int) -> Iterator[str]:
    """What llama.cpp, whose architecture ``llama`` has no window, does otherwise beyond one."""
    if isinstance(window, int) and window < context:
        yield (
            f"The model attends to the last {window:,} tokens (sliding_window); llama.cpp attends "
            "to all of them, so in texts that are longer it is not the same model."
        )


def gated_mlp(
    layer: int, hparams: Hyperparameters, config: Mapping[str, Any], names: Collection[str]
) -> tuple[dict[str, tuple[int, ...]], list[Target]]:
    """A dense SwiGLU feed-forward part: ``mlp.gate_proj``, ``mlp.up_proj``, ``mlp.down_proj``."""
    wide, hidden = hparams.intermediate_size, hparams.hidden_size
    sources: dict[str, tuple[int, ...]] = {}
    targets = []
    for part, role, shape in (
        ("gate_proj", "ffn_gate", (wide, hidden)),
        ("up_proj", "ffn_up", (wide, hidden)),
        ("down_proj", "ffn_down", (hidden, wide)),
    ):
        source, name = f"model.layers.{layer}.mlp.{part}", f"blk.{layer}.{role}"
        sources[f"{source}.weight"] = shape
        rows = Block(f"{source}.weight", 0, shape[0])
        targets.append(Target(f"{name}.weight", role, shape, layer, (rows,)))
        if config.get("mlp_bias") or f"{source}.bias" in names:
            sources[f"{source}.bias"] = shape[:1]
            row = Block(f"{source}.bias", 0, 1)
            targets.append(Target(f"{name}.bias", f"{role}_bias", shape[:1], layer, (row,)))
    return sources, targets


def read_hyperparameters(config: Mapping[str, Any]) -> Hyperparameters:
    """The numbers of a config, checked.

    Raises:
        CheckpointError: one is missing, not a positive number, or contradicts another.

    """

    def whole(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"config.json has no {key}; copy it from the original model.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"config.json says {key} = {value!r}; it must be a whole number above 0."
            )
        return value

    def real(key: str) -> float:
        return _above_zero(key, config.get(key))

    heads = whole("num_attention_heads")
    kv_heads = whole("num_key_value_heads", heads)
    hidden = whole("hidden_size")
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json has {heads} attention heads and {kv_heads} key-value heads, "
            "which do not divide; copy config.json from the original model."
        )
    head_dim = whole("head_dim") if config.get("head_dim") else hidden // heads
    if head_dim < 2 or head_dim % 2:
        raise CheckpointError(
            f"config.json gives heads of {head_dim} numbers; rotary attention needs an even count."
        )
    experts = whole("num_local_experts") if config.get("num_local_experts") else 0
    used = whole("num_experts_per_tok") if experts else 0
    if used > experts:
        raise CheckpointError(
            f"config.json uses {used} of {experts} experts per token; it cannot use more than all."
        )
    # transformers 5 writes rope_parameters, which holds the base too; 4 wrote rope_scaling.
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError("config.json's rope_scaling must be an object or null.")
    theta = _above_zero("rope_theta", scaling.get("rope_theta", config.get("rope_theta")))
    rope_type = scaling.get("rope_type", scaling.get("type"))
    if rope_type is not None and str(rope_type).lower() not in ROPE_TYPES:
        raise CheckpointError(
            f"config.json asks for {rope_type!r} rope scaling, which llama.cpp has not for this "
            f"architecture; it has {', '.join(ROPE_TYPES)}."
        )
    if original := config.get("original_max_position_embeddings"):
        scaling = {"original_max_position_embeddings": original, **scaling}
    return Hyperparameters(
        hidden_size=hidden,
        intermediate_size=whole("intermediate_size"),
        num_hidden_layers=whole("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        states_head_dim=bool(config.get("head_dim") or config.get("assume_head_dim")),
        vocab_size=whole("vocab_size"),
        max_position_embeddings=whole("max_position_embeddings"),
        rms_norm_eps=real("rms_norm_eps"),
        rope=Rope(theta, {**scaling, "rope_type": rope_type} if rope_type else {}),
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        num_local_experts=experts,
        num_experts_per_tok=used,
    )


def llama3_rope_factors(hparams: Hyperparameters) -> tuple[float, ...]:
    """Per-frequency divisors of Llama 3's rope scaling, float32; empty for any other scaling.

    Source: "llama3" in transformers' ``modeling_rope_utils.py``. The arithmetic is the float32 of
    llama.cpp's converter, where torch divides by multiplying with a reciprocal, so that the same
    numbers end up in ``rope_freqs.weight``. Powers are rounded to the nearest float32; torch's own
    are off by one in the last place here and there, depending on the CPU, but not for Llama 3.

    Raises:
        CheckpointError: a number of the scaling is not above 0, or its bounds are swapped.

    """
    import numpy as np

    scaling = hparams.rope.scaling
    if str(scaling.get("rope_type", "")).lower() != "llama3":
        return ()
    factor, low, high, old_context = (
        _above_zero(key, scaling.get(key, default))
        for key, default in (
            ("factor", 8.0),
            ("low_freq_factor", 1.0),
            ("high_freq_factor", 4.0),
            ("original_max_position_embeddings", 8192),
        )
    )
    if low >= high:
        raise CheckpointError(
            f"config.json says low_freq_factor = {low:g} and high_freq_factor = {high:g}; the high "
            "one must be the larger."
        )
    f32 = np.float32
    exponents = np.arange(0, hparams.head_dim, 2, dtype=f32) / f32(hparams.head_dim)
    freqs = f32(1.0) / np.power(hparams.rope.theta, exponents.astype(np.float64)).astype(f32)
    factors = []
    for freq in freqs:
        wavelength = f32(1.0) / freq * f32(2 * math.pi)
        if wavelength < old_context / high:
            factors.append(1.0)
        elif wavelength > old_context / low:
            factors.append(float(f32(factor)))
        else:
            smooth = (f32(1.0) / wavelength * f32(old_context) - f32(low)) / f32(high - low)
            blend = f32(1.0) / ((f32(1.0) - smooth) / f32(factor) + smooth)
            factors.append(float(blend))
    return tuple(factors)


def _above_zero(key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise CheckpointError(f"config.json says {key} = {value!r}; it must be above 0.")
    return float(value)


def _without_nulls(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config, less nulls for which there is a default.

    As in transformers, null key-value heads are not silence: they are one per attention head.
    """
    telling = {"num_key_value_heads"}
    return {k: v for k, v in config.items() if v is not None or k not in defaults or k in telling}
