"""The decoder that Llama, Mistral and Mixtral share: all are architecture ``llama`` in GGUF.

Tensor names on the GGUF side follow ``gguf-py/gguf/constants.py`` of llama.cpp; those on the
checkpoint side follow the modeling files of transformers.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.families.config_keys import check_keys
from quantkit.families.keys import decoder_keys
from quantkit.families.model import Block, Decoder, Hyperparameters, Rope, Target
from quantkit.families.rope import above_zero, read_rope

# What a number of config.json may be at most. Layers and experts are llama.cpp's (LLAMA_MAX_LAYERS,
# LLAMA_MAX_EXPERTS in src/llama-hparams.h); the others are far beyond what models have, and near
# enough that nothing sized by them gets slow or large.
_MOST = {
    "num_hidden_layers": 512,
    "num_local_experts": 512,
    "num_experts_per_tok": 512,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "vocab_size": 2**20,
    "max_position_embeddings": 2**31 - 1,
    "sliding_window": 2**31 - 1,
}
_MOST_EXPERTS = 2**16  # of all layers together

# (sources with their shapes, targets) of one layer's feed-forward part
FeedForward = Callable[
    [int, Hyperparameters, Collection[str]],
    tuple[dict[str, tuple[int, ...]], list[Target]],
]


def describe_decoder(
    family: str,
    config: Mapping[str, Any],
    names: Collection[str],
    defaults: Mapping[str, Any],
    feed_forward: FeedForward,
) -> Decoder:
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
    remarks = list(check_keys(config, family))
    hparams, more = read_hyperparameters(config, defaults, family)
    remarks += [*more, *_remarks(names, hparams)]
    if family == "llama":
        _refuse_biases(names, hparams)
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
            if hparams.attention_bias:
                name, role = f"{blk}.{gguf_part}.bias", f"{gguf_part}_bias"
                take(f"{source}.bias", name, role, shape[:1], n, rope_heads)
        norm = f"{at}.post_attention_layernorm.weight"
        take(norm, f"{blk}.ffn_norm.weight", "ffn_norm", (hidden,), n)
        layer_sources, layer_targets = feed_forward(n, hparams, names)
        sources.update(layer_sources)
        targets.extend(layer_targets)
    take("model.norm.weight", "output_norm.weight", "output_norm", (hidden,))
    # A checkpoint may tie its embeddings and still carry lm_head: as the converter does, what is
    # there is written, and llama.cpp ties only where it is absent.
    if "lm_head.weight" in names or not hparams.tie_word_embeddings:
        take("lm_head.weight", "output.weight", "output", embeddings)
    targets += _rope_tensors(hparams.rope)
    return Decoder(
        family=family,
        arch="llama",
        sources=sources,
        targets=tuple(targets),
        facts=hparams.facts,
        keys=decoder_keys("llama", hparams),
        remarks=tuple(remarks),
        hparams=hparams,
    )


def _remarks(names: Collection[str], hparams: Hyperparameters) -> Iterator[str]:
    """What llama.cpp, whose architecture ``llama`` has no window, does otherwise, and the like."""
    windows = {hparams.window(n) for n in range(hparams.num_hidden_layers)}
    window = hparams.sliding_window
    if window in windows and window is not None and window < hparams.max_position_embeddings:
        yield (
            f"The model attends to the last {window:,} tokens (sliding_window); llama.cpp attends "
            "to all of them, so in texts that are longer it is not the same model."
        )
    if hparams.tie_word_embeddings and "lm_head.weight" in names:
        yield (
            "config.json ties the output matrix to the embeddings, but there is an lm_head.weight. "
            "It is built; if it differs from the embeddings, that is what transformers 5 computes "
            "with, while 4 leaves it out."
        )


def _refuse_biases(names: Collection[str], hparams: Hyperparameters) -> None:
    """Biases that the config does not ask for: transformers leaves them out, llama.cpp would not.

    Raises:
        CheckpointError: there are some.

    """
    for part, key, asked in (
        (".self_attn.", "attention_bias", hparams.attention_bias),
        (".mlp.", "mlp_bias", hparams.mlp_bias),
    ):
        found = sorted(name for name in names if part in name and name.endswith("_proj.bias"))
        if found and not asked:
            raise CheckpointError(
                f"The checkpoint has {found[0]}, but config.json does not say {key} = true, "
                "without which transformers leaves it out; correct config.json."
            )


def _rope_tensors(rope: Rope) -> Iterator[Target]:
    """What llama.cpp divides the frequencies by, where no key says it."""
    named = {"rope_freqs": rope.divisors} if not rope.form else {}
    if rope.form == "longrope":
        named = {"rope_factors_long": rope.long_divisors, "rope_factors_short": rope.divisors}
    for name, divisors in named.items():
        if divisors:
            yield Target(f"{name}.weight", name, (len(divisors),), values=divisors)


def gated_mlp(
    layer: int, hparams: Hyperparameters, _names: Collection[str]
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
        if hparams.mlp_bias:
            sources[f"{source}.bias"] = shape[:1]
            row = Block(f"{source}.bias", 0, 1)
            targets.append(Target(f"{name}.bias", f"{role}_bias", shape[:1], layer, (row,)))
    return sources, targets


def read_hyperparameters(
    said: Mapping[str, Any], defaults: Mapping[str, Any], family: str
) -> tuple[Hyperparameters, tuple[str, ...]]:
    """The numbers of a config, checked, and remarks on them.

    Args:
        said: config.json.
        defaults: values transformers assumes where it is silent.
        family: Llama's class has biases and no window, only Mixtral's has experts.

    Raises:
        CheckpointError: one is missing, of the wrong kind, or contradicts another.

    """
    config = _with_defaults(said, defaults)

    def whole(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"config.json has no {key}; copy it from the original model.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"config.json says {key} = {quoted(value)}; it must be a whole number above 0."
            )
        if value > _MOST[key]:
            raise CheckpointError(
                f"config.json says {key} = {value}, and {_MOST[key]} is the most that quantkit "
                "takes; copy it from the original model."
            )
        return value

    def flag(key: str) -> bool:
        value = config.get(key)
        if not isinstance(value, bool | None):
            raise CheckpointError(
                f"config.json says {key} = {quoted(value)}; it must be true or false."
            )
        return bool(value)

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
    experts = used = 0
    if family == "mixtral":
        experts, used = whole("num_local_experts"), whole("num_experts_per_tok")
        # transformers 5 takes num_experts for the same; 4 leaves it out.
        if config.get("num_experts") not in (None, experts):
            raise CheckpointError(
                f"config.json says num_local_experts = {experts} and num_experts = "
                f"{quoted(config['num_experts'])}; correct or remove the second."
            )
    if used > experts:
        raise CheckpointError(
            f"config.json uses {used} of {experts} experts per token; it cannot use more than all."
        )
    has_window = family != "llama" and config.get("sliding_window") is not None
    layers = whole("num_hidden_layers")
    if layers * experts > _MOST_EXPERTS:
        raise CheckpointError(
            f"config.json says {layers} layers of {experts} experts, and {_MOST_EXPERTS} experts "
            "are the most that quantkit takes; copy it from the original model."
        )
    context = whole("max_position_embeddings")
    rope, remarks = read_rope(said, head_dim, context, defaults["rope_theta"])
    hparams = Hyperparameters(
        hidden_size=hidden,
        intermediate_size=whole("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        states_head_dim=bool(config.get("head_dim") or config.get("assume_head_dim")),
        vocab_size=whole("vocab_size"),
        max_position_embeddings=context,
        rms_norm_eps=above_zero("rms_norm_eps", config.get("rms_norm_eps")),
        rope=rope,
        sliding_window=whole("sliding_window") if has_window else None,
        full_layers=_full_layers(config, layers) if family == "mistral" else frozenset(),
        attention_bias=family == "llama" and flag("attention_bias"),
        mlp_bias=family == "llama" and flag("mlp_bias"),
        tie_word_embeddings=flag("tie_word_embeddings"),
        num_local_experts=experts,
        num_experts_per_tok=used,
    )
    return hparams, remarks


def _full_layers(config: Mapping[str, Any], layers: int) -> frozenset[int]:
    """The layers without a window: transformers 5 takes a Mistral with layer_types for a Ministral.

    Raises:
        CheckpointError: there is a layer of another type, or not one type for each.

    """
    types = config.get("layer_types")
    if types is None:
        return frozenset()
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or not all(t in known for t in types):
        raise CheckpointError(
            f"config.json's layer_types must be a list of {layers} entries, each full_attention or "
            "sliding_attention; quantkit builds no others."
        )
    return frozenset(n for n, kind in enumerate(types) if kind == "full_attention")


def _with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with what transformers assumes where it is silent or, for most keys, null.

    Null key-value heads are not silence: they are one per attention head. A null window is none.
    """
    telling = {"num_key_value_heads", "sliding_window"}
    said = {k: v for k, v in config.items() if v is not None or k not in defaults or k in telling}
    return {**defaults, **said}
