"""Tensors of models that no class of transformers saves: names and shapes, in PyTorch's order."""

from tests.architectures.small import N_TOKENS

Shapes = dict[str, tuple[int, ...]]

HIDDEN, WIDE, HEADS, EXPERTS = 256, 384, 4, 4


def ends(prefix: str = "") -> Shapes:
    """What is before and after the layers."""
    return {
        f"{prefix}lm_head.weight": (N_TOKENS, HIDDEN),
        f"{prefix}model.embed_tokens.weight": (N_TOKENS, HIDDEN),
        f"{prefix}model.norm.weight": (HIDDEN,),
    }


def norms(at: str) -> Shapes:
    return {
        f"{at}.input_layernorm.weight": (HIDDEN,),
        f"{at}.post_attention_layernorm.weight": (HIDDEN,),
    }


def mlp(at: str, wide: int = WIDE) -> Shapes:
    return {
        f"{at}.gate_proj.weight": (wide, HIDDEN),
        f"{at}.up_proj.weight": (wide, HIDDEN),
        f"{at}.down_proj.weight": (HIDDEN, wide),
    }


def numbered(at: str, wide: int, hidden: int) -> Shapes:
    """The three matrices of an expert where they are only numbered."""
    return {
        f"{at}.w1.weight": (wide, hidden),
        f"{at}.w2.weight": (hidden, wide),
        f"{at}.w3.weight": (wide, hidden),
    }


def bitnet() -> Shapes:
    """1bitLLM's: a Llama with two norms more."""
    shapes = ends()
    del shapes["lm_head.weight"]
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {**norms(at), **mlp(f"{at}.mlp")}
        shapes |= {
            f"{at}.mlp.ffn_layernorm.weight": (WIDE,),
            f"{at}.self_attn.inner_attn_ln.weight": (HIDDEN,),
        }
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
    return shapes


def mimo() -> Shapes:
    """MiMo-V2.5's: queries, keys and values in one matrix; a dense layer and one with experts."""
    shapes = ends()
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= norms(at)
        shapes[f"{at}.self_attn.qkv_proj.weight"] = (4 * 64 + 2 * 64 + 2 * 32, HIDDEN)
        shapes[f"{at}.self_attn.o_proj.weight"] = (HIDDEN, 4 * 32)
    shapes |= mlp("model.layers.0.mlp")
    shapes["model.layers.1.self_attn.attention_sink_bias"] = (HEADS,)
    shapes["model.layers.1.mlp.gate.weight"] = (EXPERTS, HIDDEN)
    shapes["model.layers.1.mlp.gate.e_score_correction_bias"] = (EXPERTS,)
    for expert in range(EXPERTS):
        shapes |= mlp(f"model.layers.1.mlp.experts.{expert}", 128)
    return shapes


def kimi() -> Shapes:
    """Kimi-K3's: a dense layer of delta attention, and one of latent attention with experts."""
    prefix, latent, wide = "language_model.", 128, 64
    shapes = ends(prefix)
    shapes[f"{prefix}model.output_attn_res_norm.weight"] = (HIDDEN,)
    shapes[f"{prefix}model.output_attn_res_proj.weight"] = (1, HIDDEN)
    for i in range(2):
        at = f"{prefix}model.layers.{i}"
        shapes |= norms(at)
        for part in ("self_attention_res", "mlp_res"):
            shapes[f"{at}.{part}_norm.weight"] = (HIDDEN,)
            shapes[f"{at}.{part}_proj.weight"] = (1, HIDDEN)
    at = f"{prefix}model.layers.0"
    shapes |= mlp(f"{at}.mlp")
    for part in "qkv":
        shapes[f"{at}.self_attn.{part}_proj.weight"] = (128, HIDDEN)
        shapes[f"{at}.self_attn.{part}_conv1d.weight"] = (128, 1, 4)
    shapes |= {
        f"{at}.self_attn.A_log": (HEADS,),
        f"{at}.self_attn.dt_bias": (128,),
        f"{at}.self_attn.b_proj.weight": (HEADS, HIDDEN),
        f"{at}.self_attn.f_a_proj.weight": (32, HIDDEN),
        f"{at}.self_attn.f_b_proj.weight": (128, 32),
        f"{at}.self_attn.g_proj.weight": (128, HIDDEN),
        f"{at}.self_attn.o_norm.weight": (32,),
        f"{at}.self_attn.o_proj.weight": (HIDDEN, 128),
    }
    at = f"{prefix}model.layers.1"
    shapes |= {
        f"{at}.self_attn.q_a_proj.weight": (96, HIDDEN),
        f"{at}.self_attn.q_a_layernorm.weight": (96,),
        f"{at}.self_attn.q_b_proj.weight": (HEADS * 48, 96),
        f"{at}.self_attn.kv_a_proj_with_mqa.weight": (64 + 16, HIDDEN),
        f"{at}.self_attn.kv_a_layernorm.weight": (64,),
        f"{at}.self_attn.kv_b_proj.weight": (HEADS * 64, 64),
        f"{at}.self_attn.g_proj.weight": (HEADS * 32, HIDDEN),
        f"{at}.self_attn.o_proj.weight": (HIDDEN, HEADS * 32),
        f"{at}.block_sparse_moe.gate.weight": (EXPERTS, HIDDEN),
        f"{at}.block_sparse_moe.gate.e_score_correction_bias": (EXPERTS,),
        f"{at}.block_sparse_moe.routed_expert_down_proj.weight": (latent, HIDDEN),
        f"{at}.block_sparse_moe.routed_expert_up_proj.weight": (HIDDEN, latent),
        f"{at}.block_sparse_moe.routed_expert_norm.weight": (latent,),
        **mlp(f"{at}.block_sparse_moe.shared_experts", wide),
    }
    for expert in range(EXPERTS):
        shapes |= numbered(f"{at}.block_sparse_moe.experts.{expert}", wide, latent)
    return shapes


def deepseek_v4() -> Shapes:
    """DeepSeek-V4's: a layer that routes by token, and one that compresses and has an indexer."""
    streams, head, wide = 2, 64, 64
    mixed = (2 + streams) * streams
    shapes: Shapes = {
        "embed.weight": (N_TOKENS, HIDDEN),
        "norm.weight": (HIDDEN,),
        "head.weight": (N_TOKENS, HIDDEN),
        "hc_head_fn": (streams, streams * HIDDEN),
        "hc_head_base": (streams,),
        "hc_head_scale": (1,),
    }
    for i in range(2):
        at = f"layers.{i}"
        for part in ("attn", "ffn"):
            shapes[f"{at}.hc_{part}_fn"] = (mixed, streams * HIDDEN)
            shapes[f"{at}.hc_{part}_base"] = (mixed,)
            shapes[f"{at}.hc_{part}_scale"] = (3,)
            shapes[f"{at}.{part}_norm.weight"] = (HIDDEN,)
        shapes |= {
            f"{at}.attn.attn_sink": (HEADS,),
            f"{at}.attn.wq_a.weight": (96, HIDDEN),
            f"{at}.attn.q_norm.weight": (96,),
            f"{at}.attn.wq_b.weight": (HEADS * head, 96),
            f"{at}.attn.wkv.weight": (head, HIDDEN),
            f"{at}.attn.kv_norm.weight": (head,),
            f"{at}.attn.wo_a.weight": (2 * 32, HEADS * head // 2),
            f"{at}.attn.wo_b.weight": (HIDDEN, 2 * 32),
            f"{at}.ffn.gate.weight": (EXPERTS, HIDDEN),
            **numbered(f"{at}.ffn.shared_experts", wide, HIDDEN),
        }
        for expert in range(EXPERTS):
            shapes |= numbered(f"{at}.ffn.experts.{expert}", wide, HIDDEN)
    shapes["layers.0.ffn.gate.tid2eid"] = (N_TOKENS, 2)
    shapes["layers.1.ffn.gate.bias"] = (EXPERTS,)
    for at, size in (("layers.1.attn", head), ("layers.1.attn.indexer", 32)):
        shapes |= {
            f"{at}.compressor.ape": (4, 2 * size),
            f"{at}.compressor.wkv.weight": (2 * size, HIDDEN),
            f"{at}.compressor.wgate.weight": (2 * size, HIDDEN),
            f"{at}.compressor.norm.weight": (size,),
        }
    shapes["layers.1.attn.indexer.wq_b.weight"] = (2 * 32, 96)
    shapes["layers.1.attn.indexer.weights_proj.weight"] = (2, HIDDEN)
    return shapes


def internvl() -> Shapes:
    """InternVL's before transformers knew it: a tower of its own, and a Qwen2."""
    size, n_patches = 64, 16
    prefix, tower = "language_model.", "vision_model"
    shapes = ends(prefix)
    for i in range(2):
        at = f"{prefix}model.layers.{i}"
        shapes |= {**norms(at), **mlp(f"{at}.mlp")}
        for part, rows in (("q", HIDDEN), ("k", 128), ("v", 128)):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (rows, HIDDEN)
            shapes[f"{at}.self_attn.{part}_proj.bias"] = (rows,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
    shapes |= {
        f"{tower}.embeddings.class_embedding": (1, 1, size),
        f"{tower}.embeddings.patch_embedding.weight": (size, 3, 14, 14),
        f"{tower}.embeddings.patch_embedding.bias": (size,),
        f"{tower}.embeddings.position_embedding": (1, 1 + n_patches, size),
    }
    for i in range(4):
        at = f"{tower}.encoder.layers.{i}"
        shapes |= {f"{at}.ls1": (size,), f"{at}.ls2": (size,)}
        for part, rows, columns in (
            ("attn.qkv", 3 * size, size),
            ("attn.proj", size, size),
            ("mlp.fc1", 2 * size, size),
            ("mlp.fc2", size, 2 * size),
        ):
            shapes[f"{at}.{part}.weight"] = (rows, columns)
            shapes[f"{at}.{part}.bias"] = (rows,)
        for part in ("norm1", "norm2"):
            shapes |= {f"{at}.{part}.weight": (size,), f"{at}.{part}.bias": (size,)}
    shapes |= {"mlp1.0.weight": (4 * size,), "mlp1.0.bias": (4 * size,)}
    shapes |= {"mlp1.1.weight": (HIDDEN, 4 * size), "mlp1.1.bias": (HIDDEN,)}
    shapes |= {"mlp1.3.weight": (HIDDEN, HIDDEN), "mlp1.3.bias": (HIDDEN,)}
    return shapes
