"""Headers of models at the depth and width at which they are published, and of some at their edge.

Names and shapes are those that ``load_arch_tensors`` of llama.cpp's ``src/models`` asks for, sizes
those of the models' own config.json. Small models do not reach rules that ask for a depth, a number
of experts, or heads that share keys; these do. `HEADERS` is the table, built when it is asked for.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from gguf import GGMLQuantizationType

from tests.architectures.sparse import Header

Tensors = dict[str, tuple[int, ...]]
Keys = dict[str, Any]

F32 = GGMLQuantizationType.F32
# What the converter leaves in float32 although it has more than one dimension.
KEPT = dict.fromkeys(
    ("ffn_gate_inp", "ssm_conv1d", "shortconv.conv", "time_mix_", "channel_mix_lerp"), F32
)


def model(
    arch: str,
    blocks: list[Tensors],
    *,
    embd: int,
    vocab: int,
    heads: int | list[int] = 0,
    kv: int | list[int] | None = None,
    ff: int | list[int] = 0,
    tied: bool = False,
    top: Tensors | None = None,
    types: Mapping[str, GGMLQuantizationType] | None = None,
    **keys: Any,
) -> Header:
    """A model of blocks between embeddings and output; ``__`` in names of keys stands for a dot."""
    tensors: Tensors = {"token_embd.weight": (embd, vocab), "output_norm.weight": (embd,)}
    if not tied:
        tensors["output.weight"] = (embd, vocab)
    tensors |= top or {}
    for i, block in enumerate(blocks):
        tensors |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    first: Keys = {
        "vocab_size": vocab,
        "context_length": 4096,
        "embedding_length": embd,
        "block_count": len(blocks),
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if heads:
        first["attention.head_count"] = heads
    if kv is not None:
        first["attention.head_count_kv"] = kv
    if ff:
        first["feed_forward_length"] = ff
    more = {name.replace("__", "."): value for name, value in keys.items()}
    return Header(arch, first | more, tensors, {**(types or {}), **KEPT})


def attention(embd: int, heads: int, kv: int, head: int = 128, *, bias: bool = False) -> Tensors:
    parts: Tensors = {
        "attn_norm.weight": (embd,),
        "attn_q.weight": (embd, heads * head),
        "attn_k.weight": (embd, kv * head),
        "attn_v.weight": (embd, kv * head),
        "attn_output.weight": (heads * head, embd),
    }
    if bias:
        for name in ("attn_q", "attn_k", "attn_v"):
            parts[f"{name}.bias"] = parts[f"{name}.weight"][1:]
    return parts


def fused(embd: int, heads: int, kv: int, head: int) -> Tensors:
    return {
        "attn_norm.weight": (embd,),
        "attn_qkv.weight": (embd, (heads + 2 * kv) * head),
        "attn_output.weight": (heads * head, embd),
    }


def dense(embd: int, ff: int, *, gate: bool = True) -> Tensors:
    parts: Tensors = {
        "ffn_norm.weight": (embd,),
        "ffn_up.weight": (embd, ff),
        "ffn_down.weight": (ff, embd),
    }
    return parts | ({"ffn_gate.weight": (embd, ff)} if gate else {})


def experts(embd: int, ff: int, n: int, *, gate: bool = True, shared: int = 0) -> Tensors:
    parts: Tensors = {
        "ffn_norm.weight": (embd,),
        "ffn_gate_inp.weight": (embd, n),
        "ffn_up_exps.weight": (embd, ff, n),
        "ffn_down_exps.weight": (ff, embd, n),
    }
    if gate:
        parts["ffn_gate_exps.weight"] = (embd, ff, n)
    if shared:
        parts |= {"ffn_up_shexp.weight": (embd, shared), "ffn_down_shexp.weight": (shared, embd)}
        if gate:
            parts["ffn_gate_shexp.weight"] = (embd, shared)
    return parts


def mamba(embd: int, inner: int, state: int, rank: int) -> Tensors:
    return {
        "attn_norm.weight": (embd,),
        "ssm_in.weight": (embd, 2 * inner),
        "ssm_conv1d.weight": (4, inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (inner, rank + 2 * state),
        "ssm_dt.weight": (rank, inner),
        "ssm_dt.bias": (inner,),
        "ssm_a": (state, inner),
        "ssm_d": (inner,),
        "ssm_out.weight": (inner, embd),
    }


def mamba2(embd: int, inner: int, state: int, groups: int, heads: int) -> Tensors:
    mixed = inner + 2 * groups * state
    return {
        "attn_norm.weight": (embd,),
        "ssm_in.weight": (embd, inner + mixed + heads),
        "ssm_conv1d.weight": (4, mixed),
        "ssm_conv1d.bias": (mixed,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner // groups, groups),
        "ssm_out.weight": (inner, embd),
    }


def ssm(inner: int, state: int, rank: int, groups: int = 0) -> Keys:
    keys: Keys = {
        "ssm__conv_kernel": 4,
        "ssm__inner_size": inner,
        "ssm__state_size": state,
        "ssm__time_step_rank": rank,
    }
    return keys | ({"ssm__group_count": groups} if groups else {})


def latent(
    embd: int, heads: int, *, q_rank: int, kv_rank: int, nope: int, rope: int, value: int
) -> Tensors:
    """Multi-head latent attention as today's converter stores it; without ``q_rank`` one ``q``."""
    query: Tensors = {
        "attn_q_a.weight": (embd, q_rank),
        "attn_q_a_norm.weight": (q_rank,),
        "attn_q_b.weight": (q_rank, heads * (nope + rope)),
    }
    if not q_rank:
        query = {"attn_q.weight": (embd, heads * (nope + rope))}
    return {
        "attn_norm.weight": (embd,),
        **query,
        "attn_kv_a_mqa.weight": (embd, kv_rank + rope),
        "attn_kv_a_norm.weight": (kv_rank,),
        "attn_k_b.weight": (nope, kv_rank, heads),
        "attn_v_b.weight": (kv_rank, value, heads),
        "attn_output.weight": (heads * value, embd),
    }


# Dense models.


def llama(
    layers: int, embd: int, ff: int, heads: int, kv: int, vocab: int = 32000, **more: Any
) -> Header:
    head = embd // heads
    block = attention(embd, heads, kv, head) | dense(embd, ff)
    tied = bool(more.pop("tied", False))
    return model(
        "llama", [block] * layers, embd=embd, vocab=vocab, heads=heads, kv=kv, ff=ff, tied=tied
    )


def qwen2_72b() -> Header:
    # Its feed-forward rows of 29,568 are no multiple of 256.
    block = attention(8192, 64, 8, bias=True) | dense(8192, 29568)
    return model("qwen2", [block] * 80, embd=8192, vocab=152064, heads=64, kv=8, ff=29568)


def qwen2_80_layers_of_7b() -> Header:
    """Not published: 80 layers are what llama.cpp takes for 70B, here with one key per query."""
    block = attention(4096, 32, 32, bias=True) | dense(4096, 11008)
    return model("qwen2", [block] * 80, embd=4096, vocab=152064, heads=32, kv=32, ff=11008)


def deci_51b() -> Header:
    """Llama-3.1-Nemotron-51B: keys and widths differ by layer, some layers have no attention."""
    blocks, heads, kv, ff = [], [], [], []
    for i in range(80):
        kind = i % 5
        wide = (28672, 14336, 28672, 7168, 21504)[kind]
        keys = (8, 8, 4, 8, 0)[kind]
        blocks.append((attention(8192, 64, keys) if keys else {}) | dense(8192, wide))
        heads.append(64 if keys else 0)
        kv.append(keys)
        ff.append(wide)
    return model("deci", blocks, embd=8192, vocab=128256, heads=heads, kv=kv, ff=ff)


def jais2_70b() -> Header:
    block = attention(8192, 64, 8, bias=True) | dense(8192, 28672, gate=False)
    return model("jais2", [block] * 68, embd=8192, vocab=150272, heads=64, kv=8, ff=28672)


def olmo_80_layers() -> Header:
    block = attention(8192, 64, 8) | dense(8192, 22016)
    return model("olmo", [block] * 80, embd=8192, vocab=50304, heads=64, kv=8, ff=22016)


def qwen3(layers: int, embd: int, ff: int, heads: int, kv: int, *, tied: bool) -> Header:
    norms: Tensors = {"attn_q_norm.weight": (128,), "attn_k_norm.weight": (128,)}
    block = attention(embd, heads, kv) | norms | dense(embd, ff)
    return model(
        "qwen3",
        [block] * layers,
        embd=embd,
        vocab=151936,
        heads=heads,
        kv=kv,
        ff=ff,
        tied=tied,
        attention__key_length=128,
        attention__value_length=128,
    )


def gemma3_4b() -> Header:
    block = attention(2560, 8, 4, 256) | dense(2560, 10240)
    return model(
        "gemma3",
        [block] * 34,
        embd=2560,
        vocab=262208,
        heads=8,
        kv=4,
        ff=10240,
        tied=True,
        attention__key_length=256,
        attention__value_length=256,
        attention__sliding_window=1024,
    )


def falcon(layers: int, embd: int, heads: int, kv: int, *, tied: bool = False) -> Header:
    block = fused(embd, heads, kv, 64) | dense(embd, 4 * embd, gate=False)
    return model(
        "falcon",
        [block] * layers,
        embd=embd,
        vocab=65024,
        heads=heads,
        kv=kv,
        ff=4 * embd,
        tied=tied,
    )


def phi3_mini() -> Header:
    # Gate and up are one matrix.
    block = fused(3072, 32, 32, 96) | dense(3072, 8192, gate=False)
    block["ffn_up.weight"] = (3072, 16384)
    return model("phi3", [block] * 32, embd=3072, vocab=32064, heads=32, kv=32, ff=8192)


def phi3_medium() -> Header:
    block = fused(5120, 40, 10, 128) | dense(5120, 17920, gate=False)
    block["ffn_up.weight"] = (5120, 35840)
    return model("phi3", [block] * 40, embd=5120, vocab=32064, heads=40, kv=10, ff=17920)


def gptneox_20b() -> Header:
    block = fused(6144, 64, 64, 96) | dense(6144, 24576, gate=False)
    return model(
        "gptneox",
        [block] * 44,
        embd=6144,
        vocab=50432,
        heads=64,
        ff=24576,
        use_parallel_residual=True,
    )


def bloom_7b() -> Header:
    block = fused(4096, 32, 32, 128) | dense(4096, 16384, gate=False)
    return model("bloom", [block] * 30, embd=4096, vocab=250880, heads=32, ff=16384, tied=True)


def gpt2_xl() -> Header:
    # Rows of 1,600 are a multiple of 32 only.
    block = fused(1600, 25, 25, 64) | dense(1600, 6400, gate=False)
    top: Tensors = {"position_embd.weight": (1600, 1024)}
    return model(
        "gpt2", [block] * 48, embd=1600, vocab=50257, heads=25, ff=6400, tied=True, top=top
    )


def odd_rows(width: int) -> Header:
    """Rows into which no block of llama.cpp's fits."""
    block = attention(width, 2, 1, width // 2) | dense(width, 3 * width)
    return model(
        "llama", [block] * 4, embd=width, vocab=1000, heads=2, kv=1, ff=3 * width, tied=False
    )


# Mixtures of experts.


def mixtral(layers: int, embd: int, ff: int, heads: int, n: int = 8) -> Header:
    block = attention(embd, heads, 8) | experts(embd, ff, n)
    return model(
        "llama",
        [block] * layers,
        embd=embd,
        vocab=32000,
        heads=heads,
        kv=8,
        ff=ff,
        expert_count=n,
        expert_used_count=2,
    )


def mixtral_of_2023() -> Header:
    """Mixtral-8x7B as it was converted at first: every expert a tensor of its own."""
    block = attention(4096, 32, 8)
    block |= {"ffn_norm.weight": (4096,), "ffn_gate_inp.weight": (4096, 8)}
    for expert in range(8):
        block |= {
            f"ffn_gate.{expert}.weight": (4096, 14336),
            f"ffn_down.{expert}.weight": (14336, 4096),
            f"ffn_up.{expert}.weight": (4096, 14336),
        }
    return model(
        "llama",
        [block] * 32,
        embd=4096,
        vocab=32000,
        heads=32,
        kv=8,
        ff=14336,
        expert_count=8,
        expert_used_count=2,
    )


def grok_1() -> Header:
    block = attention(6144, 48, 8) | experts(6144, 32768, 8)
    return model(
        "grok",
        [block] * 64,
        embd=6144,
        vocab=131072,
        heads=48,
        kv=8,
        ff=32768,
        expert_count=8,
        expert_used_count=2,
        tied=True,
    )


def dbrx() -> Header:
    block = fused(6144, 48, 8, 128) | experts(6144, 10752, 16)
    return model(
        "dbrx",
        [block] * 40,
        embd=6144,
        vocab=100352,
        heads=48,
        kv=8,
        ff=10752,
        expert_count=16,
        expert_used_count=4,
        attention__clamp_kqv=8.0,
    )


def qwen3moe(layers: int, embd: int, ff: int, heads: int) -> Header:
    block = attention(embd, heads, 4) | experts(embd, ff, 128)
    return model(
        "qwen3moe",
        [block] * layers,
        embd=embd,
        vocab=151936,
        heads=heads,
        kv=4,
        ff=6144,
        expert_count=128,
        expert_used_count=8,
        expert_feed_forward_length=ff,
        attention__key_length=128,
        attention__value_length=128,
    )


def llama4_scout() -> Header:
    block = attention(5120, 40, 8) | experts(5120, 8192, 16, shared=8192)
    return model(
        "llama4",
        [block] * 48,
        embd=5120,
        vocab=202048,
        heads=40,
        kv=8,
        ff=16384,
        expert_count=16,
        expert_used_count=1,
        expert_feed_forward_length=8192,
        interleave_moe_layer_step=1,
    )


def gpt_oss_20b() -> Header:
    """As it is published: experts in MXFP4 already, rows of 2,880 elsewhere."""
    block = attention(2880, 64, 8, 64, bias=True) | experts(2880, 2880, 32)
    block |= {"attn_sinks.weight": (64,), "ffn_gate_exps.bias": (2880, 32)}
    return model(
        "gpt-oss",
        [block] * 24,
        embd=2880,
        vocab=201088,
        heads=64,
        kv=8,
        ff=2880,
        types={"_exps.weight": GGMLQuantizationType.MXFP4},
        expert_count=32,
        expert_used_count=4,
        expert_feed_forward_length=2880,
        attention__sliding_window=128,
        attention__key_length=64,
        attention__value_length=64,
    )


# Latent attention.


def deepseek2(layers: int, embd: int, heads: int, n: int, *, q_rank: int, old: bool) -> Header:
    """``old``: before ``attn_kv_b`` was stored as the two matrices that are used."""
    block = latent(embd, heads, q_rank=q_rank, kv_rank=512, nope=128, rope=64, value=128)
    keys: Keys = {"attention__key_length": 576, "attention__value_length": 512}
    keys |= {"attention__key_length_mla": 192, "attention__value_length_mla": 128}
    kv = 1
    if old:
        for name in ("attn_k_b.weight", "attn_v_b.weight"):
            del block[name]
        block["attn_kv_b.weight"] = (512, heads * 256)
        keys, kv = {"attention__key_length": 192, "attention__value_length": 128}, heads
    if q_rank:
        keys["attention__q_lora_rank"] = q_rank
    first = 1 if layers < 30 else 3
    rest = block | experts(embd, 2048, n, shared=2048) | {"exp_probs_b.bias": (n,)}
    return model(
        "deepseek2",
        [block | dense(embd, 18432)] * first + [rest] * (layers - first),
        embd=embd,
        vocab=129280,
        heads=heads,
        kv=kv,
        ff=18432,
        expert_count=n,
        expert_used_count=6,
        expert_shared_count=1,
        expert_feed_forward_length=2048,
        leading_dense_block_count=first,
        attention__kv_lora_rank=512,
        rope__dimension_count=64,
        **keys,
    )


def deepseek4() -> Header:
    """Tables of token ids in int32, and an indexer."""
    block: Tensors = {
        "attn_norm.weight": (4096,),
        "attn_sinks.weight": (64,),
        "attn_q_a.weight": (4096, 1024),
        "attn_q_a_norm.weight": (1024,),
        "attn_q_b.weight": (1024, 64 * 512),
        "attn_kv.weight": (4096, 512),
        "attn_kv_a_norm.weight": (512,),
        "attn_output_a.weight": (4096, 1024, 8),
        "attn_output_b.weight": (8192, 4096),
        "hc_attn_fn.weight": (16384, 24),
        "hc_ffn_fn.weight": (16384, 24),
        "attn_compressor_kv.weight": (4096, 1024),
        "attn_compressor_ape.weight": (1024, 4),
        "indexer.proj.weight": (4096, 64),
        "indexer.attn_q_b.weight": (1024, 64 * 128),
        "indexer_compressor_kv.weight": (4096, 256),
        "indexer_compressor_ape.weight": (256, 4),
    }
    block |= experts(4096, 2048, 256, shared=2048)
    hashed: Tensors = block | {"ffn_gate_tid2eid.weight": (6, 129280)}
    return model(
        "deepseek4",
        [hashed] * 3 + [block] * 40,
        embd=4096,
        vocab=129280,
        heads=64,
        kv=1,
        ff=2048,
        types={"tid2eid": GGMLQuantizationType.I32},
        top={"output_hc_fn.weight": (16384, 4)},
        expert_count=256,
        expert_used_count=6,
        expert_shared_count=1,
        expert_feed_forward_length=2048,
        expert_weights_scale=1.5,
        expert_weights_norm=True,
        expert_gating_func=4,
        swiglu_clamp_exp=10.0,
        attention__q_lora_rank=1024,
        attention__key_length=512,
        attention__value_length=512,
        attention__sliding_window=128,
        attention__indexer__head_count=64,
        attention__indexer__key_length=128,
        attention__indexer__top_k=512,
        attention__output_group_count=8,
        attention__output_lora_rank=1024,
        attention__compress_rope_freq_base=160000.0,
        attention__compress_ratios=[4] * 43,
        hyper_connection__count=4,
        hyper_connection__sinkhorn_iterations=20,
        hyper_connection__epsilon=1e-6,
        hash_layer_count=3,
    )


def minimax_m3() -> Header:
    indexer: Tensors = {
        "indexer.q_proj.weight": (6144, 512),
        "indexer.k_proj.weight": (6144, 128),
        "indexer.q_norm.weight": (128,),
    }
    block = attention(6144, 64, 4)
    rest = block | indexer | experts(6144, 3072, 128, shared=3072)
    return model(
        "minimax-m3",
        [block | dense(6144, 12288)] * 3 + [rest] * 57,
        embd=6144,
        vocab=200064,
        heads=64,
        kv=4,
        ff=12288,
        expert_count=128,
        expert_used_count=4,
        expert_shared_count=1,
        expert_feed_forward_length=3072,
        expert_gating_func=2,
        leading_dense_block_count=3,
        attention__key_length=128,
        attention__value_length=128,
        attention__indexer__head_count=4,
        attention__indexer__key_length=128,
        attention__indexer__top_k=16,
        attention__indexer__block_size=128,
        attention__indexer__local_blocks=1,
    )


def delta(embd: int, heads: int, head: int, *, wide: bool) -> Tensors:
    """Kimi's delta attention; ``wide`` as bailingmoe3 has it, without its low ranks."""
    inner = heads * head
    parts = attention(embd, heads, heads, head)
    for part in "qkv":
        parts[f"ssm_conv1d_{part}.weight"] = (4, 1, inner)
    parts |= {"ssm_beta.weight": (embd, heads), "ssm_norm.weight": (head,), "ssm_a": (1, heads)}
    if wide:
        parts |= {"ssm_f_a.weight": (embd, inner), "ssm_g_a.weight": (embd, inner)}
    else:
        for part in "fg":
            parts[f"ssm_{part}_a.weight"] = (embd, head)
            parts[f"ssm_{part}_b.weight"] = (head, inner)
    return parts


def glm5_next() -> Header:
    """Delta attention in three of four layers, latent attention with an indexer, a predictor."""
    hyper: Tensors = {"hc_attn_fn.weight": (16384, 24), "hc_ffn_fn.weight": (16384, 24)}
    linear = delta(4096, 32, 128, wide=False)
    full = latent(4096, 32, q_rank=1536, kv_rank=512, nope=192, rope=64, value=256)
    full |= {
        "indexer.k_norm.weight": (128,),
        "indexer.proj.weight": (4096, 32),
        "indexer.attn_k.weight": (4096, 128),
        "indexer.attn_q_b.weight": (1536, 32 * 128),
        "indexer_compressor_gate.weight": (4096, 128),
        "indexer_compressor_ape.weight": (128, 4),
    }
    moe = experts(4096, 1536, 256, shared=1536)
    blocks, kv = [], []
    for i in range(45):
        mixer = full if i % 4 == 3 else linear
        blocks.append(mixer | hyper | (dense(4096, 12288) if i < 3 else moe))
        kv.append(1 if i % 4 == 3 else 0)
    predictor: Tensors = {"nextn.eh_proj.weight": (8192, 4096), "nextn.enorm.weight": (4096,)}
    blocks.append(full | moe | predictor)
    return model(
        "glm5-next",
        blocks,
        embd=4096,
        vocab=154880,
        heads=32,
        kv=[*kv, 1],
        ff=12288,
        nextn_predict_layers=1,
        expert_count=256,
        expert_used_count=8,
        expert_shared_count=1,
        expert_feed_forward_length=1536,
        leading_dense_block_count=3,
        attention__q_lora_rank=1536,
        attention__kv_lora_rank=512,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=256,
        attention__value_length_mla=256,
        attention__indexer__head_count=32,
        attention__indexer__key_length=128,
        attention__indexer__top_k=2048,
        attention__indexer__kpool=4,
        rope__dimension_count=64,
        kda__head_dim=128,
        ssm__conv_kernel=4,
        hyper_connection__count=4,
        hyper_connection__sinkhorn_iterations=20,
        hyper_connection__epsilon=1e-6,
    )


def bailingmoe3() -> Header:
    """Its latent attention has tensors of three dimensions that are no experts."""
    linear = delta(1536, 16, 96, wide=True)
    full = latent(1536, 16, q_rank=0, kv_rank=512, nope=128, rope=64, value=128)
    full["attn_gate.weight"] = (1536, 16)
    blocks, kv = [], []
    for i in range(24):
        moe = experts(1536, 512, 128, shared=512)
        blocks.append((full if i % 8 == 7 else linear) | (dense(1536, 4608) if i < 1 else moe))
        kv.append(1 if i % 8 == 7 else 0)
    return model(
        "bailingmoe3",
        blocks,
        embd=1536,
        vocab=157184,
        heads=16,
        kv=kv,
        ff=4608,
        expert_count=128,
        expert_used_count=8,
        expert_shared_count=1,
        expert_feed_forward_length=512,
        expert_gating_func=2,
        leading_dense_block_count=1,
        swiglu_clamp_exp=10.0,
        swiglu_clamp_shexp=10.0,
        attention__kv_lora_rank=512,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        rope__dimension_count=64,
        kda__head_dim=96,
        kda__gate_lower_bound=-5.0,
        ssm__conv_kernel=4,
    )


def kimi_linear() -> Header:
    linear = delta(2304, 32, 128, wide=False)
    full = latent(2304, 32, q_rank=0, kv_rank=512, nope=128, rope=64, value=128)
    blocks, kv = [], []
    for i in range(27):
        moe = experts(2304, 1024, 256, shared=1024)
        blocks.append((full if i % 4 == 3 else linear) | (dense(2304, 9216) if i < 1 else moe))
        kv.append(32 if i % 4 == 3 else 0)
    return model(
        "kimi-linear",
        blocks,
        embd=2304,
        vocab=163840,
        heads=32,
        kv=kv,
        ff=9216,
        expert_count=256,
        expert_used_count=8,
        expert_shared_count=1,
        expert_feed_forward_length=1024,
        expert_gating_func=2,
        leading_dense_block_count=1,
        attention__kv_lora_rank=512,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        rope__dimension_count=64,
        kda__head_dim=128,
        ssm__conv_kernel=4,
    )


# Hybrids: the first layer has no attention, so llama.cpp's factor of grouped queries is 0.


def nemotron_h_8b() -> Header:
    pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
    kinds = {
        "M": mamba2(4096, 8192, 128, 8, 128),
        "-": {"attn_norm.weight": (4096,), **dense(4096, 21504, gate=False)},
        "*": attention(4096, 32, 8),
    }
    del kinds["-"]["ffn_norm.weight"]
    return model(
        "nemotron_h",
        [kinds[kind] for kind in pattern],
        embd=4096,
        vocab=131072,
        heads=32,
        kv=[8 if kind == "*" else 0 for kind in pattern],
        ff=[21504 if kind == "-" else 0 for kind in pattern],
        attention__key_length=128,
        attention__value_length=128,
        **ssm(8192, 128, 128, 8),
    )


def nemotron_h_moe_30b() -> Header:
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    moe = experts(2688, 1856, 128, gate=False, shared=3712)
    del moe["ffn_norm.weight"]
    kinds = {
        "M": mamba2(2688, 4096, 128, 8, 64),
        "E": {"attn_norm.weight": (2688,), "exp_probs_b.bias": (128,), **moe},
        "*": attention(2688, 32, 2),
    }
    return model(
        "nemotron_h_moe",
        [kinds[kind] for kind in pattern],
        embd=2688,
        vocab=131072,
        heads=32,
        kv=[2 if kind == "*" else 0 for kind in pattern],
        ff=[1856 if kind == "E" else 0 for kind in pattern],
        expert_count=128,
        expert_used_count=6,
        expert_shared_count=1,
        expert_feed_forward_length=1856,
        expert_shared_feed_forward_length=3712,
        attention__key_length=128,
        attention__value_length=128,
        **ssm(4096, 128, 64, 8),
    )


def shortconv(embd: int) -> Tensors:
    return {
        "attn_norm.weight": (embd,),
        "shortconv.conv.weight": (3, embd),
        "shortconv.in_proj.weight": (embd, 3 * embd),
        "shortconv.out_proj.weight": (embd, embd),
    }


def lfm2_1b() -> Header:
    full = {2, 5, 8, 10, 12, 14}
    blocks = [
        (attention(2048, 32, 8, 64) if i in full else shortconv(2048)) | dense(2048, 8192)
        for i in range(16)
    ]
    kv = [8 if i in full else 0 for i in range(16)]
    return model(
        "lfm2", blocks, embd=2048, vocab=65536, heads=32, kv=kv, ff=8192, tied=True,
        shortconv__l_cache=3,
    )  # fmt: skip


def lfm2moe_8b() -> Header:
    full = {2, 6, 10, 14, 18, 21}
    blocks = [
        (attention(2048, 32, 8, 64) if i in full else shortconv(2048))
        | (dense(2048, 7168) if i < 2 else experts(2048, 1792, 32))
        for i in range(24)
    ]
    return model(
        "lfm2moe",
        blocks,
        embd=2048,
        vocab=65536,
        heads=32,
        kv=[8 if i in full else 0 for i in range(24)],
        ff=7168,
        tied=True,
        expert_count=32,
        expert_used_count=4,
        expert_feed_forward_length=1792,
        expert_gating_func=2,
        leading_dense_block_count=2,
        shortconv__l_cache=3,
    )


def granite_4_small() -> Header:
    full = {5, 15, 25, 35}
    blocks = [
        (attention(4096, 32, 8) if i in full else mamba2(4096, 8192, 128, 1, 128))
        | experts(4096, 768, 72, shared=1536)
        for i in range(40)
    ]
    return model(
        "granitehybrid",
        blocks,
        embd=4096,
        vocab=100352,
        heads=32,
        kv=[8 if i in full else 0 for i in range(40)],
        ff=768,
        tied=True,
        expert_count=72,
        expert_used_count=10,
        expert_shared_feed_forward_length=1536,
        **ssm(8192, 128, 128, 1),
    )


def jamba_mini() -> Header:
    norms: Tensors = {f"ssm_{part}_norm.weight": (16,) for part in "bc"}
    norms["ssm_dt_norm.weight"] = (256,)
    blocks = [
        (attention(4096, 32, 8) if i % 8 == 4 else mamba(4096, 8192, 16, 256) | norms)
        | (experts(4096, 14336, 16) if i % 2 else dense(4096, 14336))
        for i in range(32)
    ]
    return model(
        "jamba",
        blocks,
        embd=4096,
        vocab=65536,
        heads=32,
        kv=[8 if i % 8 == 4 else 0 for i in range(32)],
        ff=14336,
        expert_count=16,
        expert_used_count=2,
        **ssm(8192, 16, 256),
    )


def qwen3next_80b() -> Header:
    """Linear attention with an ``attn_qkv``, which counts as one more value matrix."""
    linear: Tensors = {
        "attn_norm.weight": (2048,),
        "attn_qkv.weight": (2048, 8192),
        "attn_gate.weight": (2048, 4096),
        "ssm_conv1d.weight": (4, 8192),
        "ssm_dt.bias": (32,),
        "ssm_a": (32,),
        "ssm_ba.weight": (2048, 64),
        "ssm_norm.weight": (128,),
        "ssm_out.weight": (4096, 2048),
    }
    full = attention(2048, 16, 2, 256) | {"attn_q.weight": (2048, 8192)}
    moe = experts(2048, 512, 512, shared=512) | {"ffn_gate_inp_shexp.weight": (2048,)}
    return model(
        "qwen3next",
        [(full if i % 4 == 3 else linear) | moe for i in range(48)],
        embd=2048,
        vocab=151936,
        heads=16,
        kv=2,
        ff=5120,
        expert_count=512,
        expert_used_count=10,
        expert_feed_forward_length=512,
        expert_shared_feed_forward_length=512,
        attention__key_length=256,
        attention__value_length=256,
        **ssm(4096, 128, 32, 16),
    )


# Recurrent models.


def mamba_2b() -> Header:
    block = mamba(2560, 5120, 16, 160)
    return model("mamba", [block] * 64, embd=2560, vocab=50280, tied=True, **ssm(5120, 16, 160))


def mamba2_2b() -> Header:
    block = mamba2(2560, 5120, 128, 1, 80)
    return model("mamba2", [block] * 64, embd=2560, vocab=50288, tied=True, **ssm(5120, 128, 80, 1))


def rwkv(extra: Tensors, **keys: Any) -> tuple[Tensors, Keys]:
    block: Tensors = {f"attn_norm{part}.weight": (2560,) for part in ("", "_2")}
    for part in ("key", "value", "receptance", "output"):
        block[f"time_mix_{part}.weight"] = (2560, 2560)
    block |= {
        "time_mix_ln.weight": (2560,),
        "channel_mix_lerp_k.weight": (2560, 1, 1),
        "channel_mix_key.weight": (2560, 8960),
        "channel_mix_value.weight": (8960, 2560),
    }
    return block | extra, {"wkv__head_size": 64, **keys}


def rwkv6_3b() -> Header:
    block, keys = rwkv(
        {
            "time_mix_w1.weight": (2560, 160),
            "time_mix_w2.weight": (32, 2560, 5),
            "time_mix_lerp_fused.weight": (2560, 1, 1, 5),
            "time_mix_lerp_x.weight": (2560, 1, 1),
            "time_mix_first.weight": (64, 40),
            "time_mix_decay.weight": (2560,),
            "time_mix_decay_w1.weight": (2560, 64),
            "time_mix_decay_w2.weight": (64, 2560),
            "time_mix_gate.weight": (2560, 2560),
            "channel_mix_lerp_r.weight": (2560, 1, 1),
            "channel_mix_receptance.weight": (2560, 2560),
        },
        time_mix_extra_dim=32,
        time_decay_extra_dim=64,
        rescale_every_n_layers=6,
    )
    return model(
        "rwkv6", [block] * 32, embd=2560, vocab=65536, ff=8960, types=_RWKV, heads=0, **keys
    )


def rwkv7_3b() -> Header:
    low: Tensors = {"time_mix_lerp_fused.weight": (2560, 1, 1, 6)}
    for part, rank in {"w": 96, "a": 96, "v": 64, "g": 320}.items():
        low |= {
            f"time_mix_{part}0.weight": (2560,),
            f"time_mix_{part}1.weight": (2560, rank),
            f"time_mix_{part}2.weight": (rank, 2560),
        }
    block, keys = rwkv(
        low,
        attention__decay_lora_rank=96,
        attention__iclr_lora_rank=96,
        attention__value_residual_mix_lora_rank=64,
        attention__gate_lora_rank=320,
    )
    return model(
        "rwkv7", [block] * 32, embd=2560, vocab=65536, ff=8960, types=_RWKV, heads=0, **keys
    )


_RWKV = {
    f"time_mix_{part}.weight": GGMLQuantizationType.BF16
    for part in ("key", "value", "receptance", "output", "gate")
}


# Encoders, and both.


def t5_xl(*, decoder: bool) -> Header:
    """Blocks have names of their own, which do not say to llama-quantize which layer they are."""
    embd, inner, ff, layers = 2048, 2048, 5120, 24
    tensors: Tensors = {"token_embd.weight": (embd, 32128), "enc.output_norm.weight": (embd,)}
    for side in ("enc", "dec") if decoder else ("enc",):
        for i in range(layers):
            at = f"{side}.blk.{i}"
            for kind in ("attn", "cross_attn") if side == "dec" else ("attn",):
                tensors |= {f"{at}.{kind}_{part}.weight": (embd, inner) for part in "qkv"}
                tensors |= {f"{at}.{kind}_o.weight": (inner, embd)}
                tensors |= {f"{at}.{kind}_norm.weight": (embd,)}
            if i == 0:
                tensors[f"{at}.attn_rel_b.weight"] = (32, 32)
            tensors |= {f"{at}.{name}": shape for name, shape in dense(embd, ff).items()}
    if decoder:
        tensors |= {"dec.output_norm.weight": (embd,), "output.weight": (embd, 32128)}
    keys: Keys = {
        "context_length": 512,
        "embedding_length": embd,
        "block_count": layers,
        "feed_forward_length": ff,
        "attention.head_count": 32,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.relative_buckets_count": 32,
        "decoder_start_token_id": 0,
    }
    return Header("t5" if decoder else "t5encoder", keys, tensors)


def bert(arch: str, block: Tensors, layers: int, *, embd: int, ff: int, **keys: Any) -> Header:
    """An encoder with embeddings of positions and of token types, and no output."""
    top: Tensors = {
        "position_embd.weight": (embd, 512),
        "token_types.weight": (embd, 2),
        "token_embd_norm.weight": (embd,),
    }
    norms: Tensors = {f"{name}_output_norm.weight": (embd,) for name in ("attn", "layer")}
    header = model(
        arch,
        [block | norms] * layers,
        embd=embd,
        vocab=30522,
        heads=embd // 64,
        ff=ff,
        tied=True,
        top=top,
        types={"position_embd": F32, "token_types": F32},
        attention__causal=False,
        **keys,
    )
    tensors = {name: s for name, s in header.tensors.items() if name != "output_norm.weight"}
    return Header(header.arch, header.keys, tensors, header.types)


def bert_large() -> Header:
    return bert(
        "bert",
        attention(1024, 16, 16, 64, bias=True) | dense(1024, 4096, gate=False),
        24,
        embd=1024,
        ff=4096,
    )


def minilm() -> Header:
    # Rows of 384.
    return bert(
        "bert",
        attention(384, 6, 6, 64, bias=True) | dense(384, 1536, gate=False),
        6,
        embd=384,
        ff=1536,
    )


def nomic_bert() -> Header:
    return bert("nomic-bert", fused(768, 12, 12, 64) | dense(768, 3072), 12, embd=768, ff=3072)


def modern_bert() -> Header:
    # Gate and up are one matrix.
    block = fused(768, 12, 12, 64) | dense(768, 1152, gate=False) | {"ffn_up.weight": (768, 2304)}
    return bert("modern-bert", block, 22, embd=768, ff=1152, attention__sliding_window=128)


# Others with tensors that have rules of their own.


def gemma3n_e4b() -> Header:
    block = attention(2048, 8, 2, 256) | dense(2048, 16384)
    block |= {
        "inp_gate.weight": (2048, 256),
        "proj.weight": (256, 2048),
        "altup_correct_coef.weight": (4, 4),
        "altup_predict_coef.weight": (4, 16),
        "altup_router.weight": (2048, 4),
        "laurel_l.weight": (2048, 64),
        "laurel_r.weight": (64, 2048),
    }
    top: Tensors = {
        "altup_proj.weight": (2048, 2048, 3),
        "altup_unembd_proj.weight": (2048, 2048, 3),
        "per_layer_token_embd.weight": (256 * 35, 262144),
        "per_layer_model_proj.weight": (2048, 256 * 35),
        "per_layer_proj_norm.weight": (256,),
    }
    return model(
        "gemma3n",
        [block] * 35,
        embd=2048,
        vocab=262400,
        heads=8,
        kv=2,
        ff=[16384] * 35,
        tied=True,
        top=top,
        embedding_length_per_layer_input=256,
        attention__key_length=256,
        attention__value_length=256,
        attention__sliding_window=512,
        attention__shared_kv_layers=15,
    )


def vision_encoder(*, values: bool = False) -> Header:
    """A projector file: names that are never quantized stand in none of the language models.

    A matrix of ``values`` makes llama-quantize ask for heads, of which such a file has none.
    """
    tensors: Tensors = {
        "v.patch_embd.weight": (16, 16, 3, 1152),
        "v.position_embd.weight": (1152, 4096),
        "v.patch_merger.weight": (4608, 1152),
        "v.sam.pos_embd.weight": (768, 64, 64),
        "v.sam.neck.0.weight": (768, 256),
        "v.sam.net_2.weight": (768, 512),
        "v.sam.blk.0.attn.rel_pos_h.weight": (64, 127),
        "a.rvq.codebook.0.weight": (256, 1024),
        "mm.a.code_embd.weight": (256, 1024),
        "mm.model.mlp.0.weight": (1152, 4096),
    }
    for i in range(4):
        tensors |= {f"v.blk.{i}.attn_{part}.weight": (1152, 1152) for part in ("q", "k", "out")}
        tensors |= {
            f"v.blk.{i}.ffn_up.weight": (1152, 4352),
            f"v.blk.{i}.ffn_down.weight": (4352, 1152),
            f"v.blk.{i}.ln1.weight": (1152,),
        }
        if values:
            tensors[f"v.blk.{i}.attn_v.weight"] = (1152, 1152)
    keys: Keys = {"general.type": "mmproj", "clip.has_vision_encoder": True}
    return Header("clip", keys, tensors)


# What each is there for stands beside it.
HEADERS: dict[str, Callable[[], Header]] = {
    "llama-70b": lambda: llama(80, 8192, 28672, 64, 8, 128256),  # 70B: more bits for attn_v
    "llama-65b": lambda: llama(80, 8192, 22016, 64, 64),  # 80 layers, and not 70B
    "qwen2-72b": qwen2_72b,
    "qwen2-80-layers": qwen2_80_layers_of_7b,  # 70B without grouped queries
    "deci-51b": deci_51b,
    "jais2-70b": jais2_70b,
    "olmo-80-layers": olmo_80_layers,
    "llama-2-7b": lambda: llama(32, 4096, 11008, 32, 32),  # a key for each query
    "mistral-7b": lambda: llama(32, 4096, 14336, 32, 8),  # one for four
    "smollm2-135m": lambda: llama(30, 576, 1536, 9, 3, 49152, tied=True),  # one for three
    "qwen3-0.6b": lambda: qwen3(28, 1024, 3072, 16, 8, tied=True),  # one for two
    "qwen3-14b": lambda: qwen3(40, 5120, 17408, 40, 8, tied=False),  # one for five
    "gemma3-4b": gemma3_4b,
    "falcon-7b": lambda: falcon(32, 4544, 71, 1),
    "falcon-7b-tied": lambda: falcon(32, 4544, 71, 1, tied=True),
    "falcon-40b": lambda: falcon(60, 8192, 128, 8),
    "phi3-mini": phi3_mini,
    "phi3-medium": phi3_medium,
    "gptneox-20b": gptneox_20b,
    "bloom-7b": bloom_7b,
    "gpt2-xl": gpt2_xl,
    "rows-of-96": lambda: odd_rows(96),
    "rows-of-100": lambda: odd_rows(100),
    "rows-of-160": lambda: odd_rows(160),
    "mixtral-8x7b": lambda: mixtral(32, 4096, 14336, 32),
    "mixtral-8x22b": lambda: mixtral(56, 6144, 16384, 48),
    "mixtral-4x7b": lambda: mixtral(32, 4096, 14336, 32, 4),
    "mixtral-2x7b": lambda: mixtral(32, 4096, 14336, 32, 2),
    "mixtral-of-80-layers": lambda: mixtral(80, 8192, 28672, 64),
    "mixtral-of-2023": mixtral_of_2023,
    "grok-1": grok_1,
    "dbrx": dbrx,
    "qwen3moe-30b": lambda: qwen3moe(48, 2048, 768, 32),
    "qwen3moe-235b": lambda: qwen3moe(94, 4096, 1536, 64),
    "llama4-scout": llama4_scout,
    "gpt-oss-20b": gpt_oss_20b,
    "deepseek-v2-lite": lambda: deepseek2(27, 2048, 16, 64, q_rank=0, old=True),
    "deepseek-v3": lambda: deepseek2(61, 7168, 128, 256, q_rank=1536, old=False),
    "deepseek-v4": deepseek4,
    "minimax-m3": minimax_m3,
    "glm5-next": glm5_next,
    "bailingmoe3": bailingmoe3,
    "kimi-linear": kimi_linear,
    "nemotron-h-8b": nemotron_h_8b,
    "nemotron-h-30b": nemotron_h_moe_30b,
    "lfm2-1b": lfm2_1b,
    "lfm2-8b-a1b": lfm2moe_8b,
    "granite-4-small": granite_4_small,
    "jamba-mini": jamba_mini,
    "qwen3next-80b": qwen3next_80b,
    "mamba-2.8b": mamba_2b,
    "mamba2-2.7b": mamba2_2b,
    "rwkv6-3b": rwkv6_3b,
    "rwkv7-3b": rwkv7_3b,
    "t5-xl": lambda: t5_xl(decoder=True),
    "t5-xl-encoder": lambda: t5_xl(decoder=False),
    "bert-large": bert_large,
    "minilm": minilm,
    "nomic-bert": nomic_bert,
    "modern-bert": modern_bert,
    "gemma3n-e4b": gemma3n_e4b,
    "vision-encoder": vision_encoder,
}


def experts_outside_blocks() -> Header:
    """A feed-forward matrix of a mixture whose name does not say in which layer it is."""
    good = mixtral(2, 4096, 14336, 32)
    return Header(
        good.arch, good.keys, {**good.tensors, "mtp.ffn_down.weight": (14336, 4096)}, good.types
    )


def experts_beyond_the_last_block() -> Header:
    """A mixture with a layer more than its metadata says."""
    good = mixtral(3, 4096, 14336, 32)
    return Header(good.arch, {**good.keys, "block_count": 2}, good.tensors, good.types)


def groups_without_experts() -> Header:
    good = llama(2, 4096, 11008, 32, 32)
    return Header(good.arch, {**good.keys, "expert_group_count": 1}, good.tensors, good.types)


def no_layers() -> Header:
    good = llama(2, 4096, 11008, 32, 32)
    return Header(good.arch, {**good.keys, "block_count": 0}, good.tensors, good.types)


# A file type for which llama-quantize stops at a header, or aborts, and why.
REFUSED: dict[str, tuple[Callable[[], Header], str, str]] = {
    "vision-encoder-with-values": (
        lambda: vision_encoder(values=True),
        "Q2_K",
        "status -6",
    ),
    "rows-of-96": (lambda: odd_rows(96), "Q1_0", "no tensor type fallback is defined"),
    "experts-outside-blocks": (experts_outside_blocks, "Q4_K_M", "Failed to determine layer"),
    "experts-beyond-the-last-block": (experts_beyond_the_last_block, "Q4_K_M", "Bad layer 2"),
    "groups-without-experts": (groups_without_experts, "Q4_K_M", "status -6"),
    "no-layers": (no_layers, "Q4_K_M", "status -6"),
}


@cache
def header(name: str) -> Header:
    """One of `HEADERS` or `REFUSED`, built once."""
    return HEADERS[name]() if name in HEADERS else REFUSED[name][0]()
