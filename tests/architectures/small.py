"""Small models of many architectures: config, class and vocabulary, as data.

Each is made by transformers with random weights, at most two million, and a vocabulary of 512
tokens. Rows of most are multiples of 256, so that every block of llama.cpp's occurs; those
of the others (`NARROW`) are not, so that its fallbacks do.

Not here: BitNet and DeepSeek-V4, because the converter knows their tensors by other names than
transformers writes; Qwen3-VL-MoE, because it takes experts for transposed that are not;
DeepSeek-V3.2, because it wants a class of tokenizer; and models whose code comes with the
checkpoint, except where a class of transformers has the same tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.architectures import rwkv

Config = Mapping[str, Any]
Vocabulary = Literal["bytes", "pieces", "words", "unigram", "merges", "world"]


@dataclass(frozen=True)
class Small:
    """A model to make.

    Attributes:
        arch: what the converter calls it in ``general.architecture``.
        model: transformers' class, or what config.json calls the model where there is none: then
            ``config`` is all of it and ``shapes`` are its tensors.
        config: what differs from `COMMON`; None takes an entry of it away. Entries of
            ``text_config`` differ from `COMMON` as well.
        vocabulary: byte-level BPE, SentencePiece's BPE, WordPiece, SentencePiece's unigram, or
            its BPE as a tokenizer.json, or RWKV's list.
        published: entries that the published config.json has and today's transformers does not
            write; the converter wants them.
        unpublished: entries that today's transformers writes and the published one has not.
        options: the converter's.
        mxfp4: whether the experts are stored in blocks of four bits, as gpt-oss is published.
        predictor: how a layer that predicts one more token is named, if there is one: "mtp" as in
            Qwen3.5, or "layer" as in DeepSeek-V3, where it follows the others.
        shapes: see ``model``.
        dropped: a pattern of tensors of transformers' class that the published model has not.

    """

    arch: str
    model: str
    config: Config = field(default_factory=dict)
    vocabulary: Vocabulary = "bytes"
    published: Config = field(default_factory=dict)
    unpublished: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    mxfp4: bool = False
    predictor: Literal["mtp", "layer"] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: str | None = None


N_TOKENS = 512
N_MERGED = 420  # in tests.checkpoint.vocabularies.piece_bpe
COMMON: Config = {
    "vocab_size": N_TOKENS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Rows into which no block of 256 fits.
NARROW: Config = {"hidden_size": 192, "intermediate_size": 352, "num_attention_heads": 6}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
LOCAL: Config = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: Config = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
}
LATENT: Config = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
LINEAR: Config = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "head_dim": 64,
}
INDEXED: Config = {"index_n_heads": 2, "index_head_dim": 32, "index_topk": 16}
YARN: Config = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
RWKV: Config = {
    "vocab_size": N_TOKENS,
    "hidden_size": rwkv.HIDDEN,
    "intermediate_size": rwkv.WIDE,
    "num_hidden_layers": rwkv.LAYERS,
    "head_size": rwkv.HEAD,
    "layer_norm_epsilon": 1e-5,
    "torch_dtype": "bfloat16",
}
ENCODER: Config = {"num_key_value_heads": None, "bos_token_id": None, "eos_token_id": None}

SMALL: dict[str, Small] = {
    # Dense.
    "llama": Small("llama", "LlamaForCausalLM", vocabulary="pieces"),
    "llama-narrow": Small("llama", "LlamaForCausalLM", NARROW),
    "mistral3": Small("mistral3", "Ministral3ForCausalLM", {"rope_parameters": YARN}),
    "qwen2": Small("qwen2", "Qwen2ForCausalLM", NARROW),
    "qwen3": Small("qwen3", "Qwen3ForCausalLM", {"head_dim": 64, "tie_word_embeddings": True}),
    "qwen2vl": Small(
        "qwen2vl",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [8, 12, 12],
                }
            },
            "vision_config": {"depth": 1, "embed_dim": 64, "hidden_size": 256, "num_heads": 2},
        },
    ),
    "qwen3vl": Small(
        "qwen3vl",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                "head_dim": 64,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [12, 10, 10],
                },
            },
            "vision_config": {
                "depth": 1,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 2,
                "out_hidden_size": 256,
                "deepstack_visual_indexes": [0],
            },
        },
    ),
    "gemma": Small("gemma", "GemmaForCausalLM", {"head_dim": 64}, "pieces"),
    "gemma2": Small("gemma2", "Gemma2ForCausalLM", {"head_dim": 64, **NARROW}, "pieces"),
    "gemma3": Small("gemma3", "Gemma3ForCausalLM", {"head_dim": 64}, "pieces"),
    "gemma3n": Small(
        "gemma3n",
        "Gemma3nForCausalLM",
        {
            "hidden_size": 128,
            "head_dim": 32,
            "num_hidden_layers": 4,
            "intermediate_size": [256] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": N_TOKENS,
            "hidden_size_per_layer_input": 256,
            "laurel_rank": 64,
            "activation_sparsity_pattern": [0.0] * 4,
        },
        "pieces",
    ),
    "gemma4": Small(
        "gemma4",
        "Gemma4ForCausalLM",
        {
            "head_dim": 64,
            "global_head_dim": 64,
            "vocab_size": N_MERGED,
            "vocab_size_per_layer_input": N_MERGED,
            "hidden_size_per_layer_input": 32,
        },
        "merges",
        published={"global_head_dim": 64},
    ),
    "phi2": Small("phi2", "PhiForCausalLM", {"num_key_value_heads": 4, "intermediate_size": 1024}),
    # llama.cpp's vocabulary goes by the names "phi3" and "phi-3", and wants all of their tokens.
    "phi-mini": Small(
        "phi3",
        "Phi3ForCausalLM",
        {"original_max_position_embeddings": 512, "sliding_window": 256},
        "pieces",
    ),
    "glm4": Small("glm4", "Glm4ForCausalLM", {"head_dim": 64}),
    "chatglm": Small("chatglm", "GlmForCausalLM", {"head_dim": 64}),
    "nemotron": Small("nemotron", "NemotronForCausalLM", {}, "pieces"),
    "falcon": Small(
        "falcon",
        "FalconForCausalLM",
        {"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 1},
    ),
    "olmo": Small("olmo", "OlmoForCausalLM"),
    "olmo2": Small("olmo2", "Olmo2ForCausalLM", NARROW),
    "olmo3": Small("olmo2", "Olmo3ForCausalLM", {"sliding_window": 64}),
    "granite": Small("granite", "GraniteForCausalLM", NARROW),
    "command-r": Small("command-r", "CohereForCausalLM"),
    "cohere2": Small(
        "cohere2", "Cohere2ForCausalLM", {"sliding_window": 64}, published={"rotary_pct": 1.0}
    ),
    "starcoder2": Small("starcoder2", "Starcoder2ForCausalLM"),
    "starcoder": Small("starcoder", "GPTBigCodeForCausalLM"),
    "stablelm": Small("stablelm", "StableLmForCausalLM", NARROW),
    "gptneox": Small("gptneox", "GPTNeoXForCausalLM"),
    "gpt2": Small(
        "gpt2",
        "GPT2LMHeadModel",
        {"hidden_size": 96, "num_attention_heads": 3},
        published={"n_ctx": 512},
    ),
    "bloom": Small("bloom", "BloomForCausalLM"),
    "mpt": Small("mpt", "MptForCausalLM", published={"architectures": ["MPTForCausalLM"]}),
    "smollm3": Small("smollm3", "SmolLM3ForCausalLM", NARROW),
    "seed_oss": Small("seed_oss", "SeedOssForCausalLM", {"head_dim": 64}),
    "exaone4": Small("exaone4", "Exaone4ForCausalLM", {"sliding_window": 64}),
    "ernie4_5": Small("ernie4_5", "Ernie4_5ForCausalLM", {"head_dim": 64}, "pieces"),
    "hunyuan-dense": Small("hunyuan-dense", "HunYuanDenseV1ForCausalLM", {"head_dim": 64}),
    "apertus": Small("apertus", "ApertusForCausalLM"),
    "arcee": Small("arcee", "ArceeForCausalLM", NARROW),
    "minicpm3": Small("minicpm3", "MiniCPM3ForCausalLM", {**LATENT, "v_head_dim": 64}, "pieces"),
    "jais2": Small("jais2", "Jais2ForCausalLM"),
    # Mixtures of experts.
    "mixtral": Small(
        "llama",
        "MixtralForCausalLM",
        {**LOCAL, "num_local_experts": 8, "intermediate_size": 128, "num_hidden_layers": 1},
        "pieces",
    ),
    "llama4": Small(
        "llama4",
        "Llama4ForCausalLM",
        {
            **LOCAL,
            "num_experts_per_tok": 1,
            "head_dim": 64,
            "intermediate_size": 256,
            "intermediate_size_mlp": 256,
            "interleave_moe_layer_step": 2,
        },
    ),
    "qwen2moe": Small(
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 128, "moe_intermediate_size": 128},
    ),
    "qwen3moe": Small(
        "qwen3moe", "Qwen3MoeForCausalLM", {**EXPERTS, "head_dim": 64, "num_hidden_layers": 1}
    ),
    "gpt-oss": Small(
        "gpt-oss",
        "GptOssForCausalLM",
        {
            **LOCAL,
            "hidden_size": 192,
            "intermediate_size": 192,
            "head_dim": 32,
            "sliding_window": 64,
        },
    ),
    # A source that is quantized already.
    "gpt-oss-mxfp4": Small(
        "gpt-oss",
        "GptOssForCausalLM",
        {
            **LOCAL,
            "num_hidden_layers": 1,
            "intermediate_size": 256,
            "head_dim": 32,
            "sliding_window": 64,
        },
        published={"quantization_config": {"quant_method": "mxfp4"}},
        mxfp4=True,
    ),
    "phimoe": Small(
        "phimoe",
        "PhimoeForCausalLM",
        {**LOCAL, "intermediate_size": 192, "lm_head_bias": True, "attention_bias": True},
        "pieces",
        published={"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 512},
    ),
    "glm4moe": Small(
        "glm4moe", "Glm4MoeForCausalLM", {**ROUTED, "head_dim": 64, "intermediate_size": 256}
    ),
    "minimax-m2": Small(
        "minimax-m2",
        "MiniMaxM2ForCausalLM",
        {**LOCAL, "head_dim": 64, "intermediate_size": 128},
        published={"rotary_dim": 32, "scoring_func": "sigmoid"},
    ),
    "olmoe": Small(
        "olmoe", "OlmoeForCausalLM", {**EXPERTS, "intermediate_size": 128, "num_key_value_heads": 4}
    ),
    "granitemoe": Small("granitemoe", "GraniteMoeForCausalLM", {**LOCAL, "intermediate_size": 128}),
    "ernie4_5-moe": Small(
        "ernie4_5-moe",
        "Ernie4_5_MoeForCausalLM",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 128,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 1,
            "moe_layer_end_index": 1,
            "moe_num_shared_experts": 2,
        },
        "pieces",
    ),
    "hunyuan-moe": Small(
        "hunyuan-moe",
        "HunYuanMoEV1ForCausalLM",
        {
            "num_experts": 4,
            "moe_topk": 2,
            "head_dim": 64,
            "intermediate_size": 128,
            "moe_intermediate_size": [128, 128],
            "num_shared_expert": [1, 1],
        },
        published={"moe_topk": [2, 2]},
    ),
    "dots1": Small(
        "dots1",
        "Dots1ForCausalLM",
        {**ROUTED, "head_dim": 64, "intermediate_size": 256, "num_key_value_heads": 4},
        published={"scoring_func": "sigmoid"},
    ),
    "afmoe": Small(
        "afmoe",
        "AfmoeForCausalLM",
        {**EXPERTS, "head_dim": 64, "num_dense_layers": 1, "moe_intermediate_size": 128},
    ),
    # Latent attention.
    "deepseek2-lite": Small(
        "deepseek2",
        "DeepseekV2ForCausalLM",
        # llama.cpp looks for a ``q_lora_rank`` unless there are 26 or 27 layers.
        {
            **ROUTED,
            **LATENT,
            "q_lora_rank": None,
            "num_hidden_layers": 27,
            "hidden_size": 64,
            "kv_lora_rank": 32,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
        },
    ),
    "deepseek2": Small("deepseek2", "DeepseekV3ForCausalLM", {**ROUTED, **LATENT}),
    # Hybrids and recurrent models.
    "qwen3next": Small(
        "qwen3next",
        "Qwen3NextForCausalLM",
        {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 128, "moe_intermediate_size": 128},
        options=("--no-mtp",),
    ),
    "qwen35": Small(
        "qwen35",
        "Qwen3_5ForCausalLM",
        {**LINEAR, "intermediate_size": 256},
        published={
            "mtp_num_hidden_layers": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [3, 3, 2],
                "partial_rotary_factor": 0.25,
            },
        },
        predictor="mtp",
    ),
    "qwen35moe": Small(
        "qwen35moe",
        "Qwen3_5MoeForCausalLM",
        {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 128, "moe_intermediate_size": 128},
        published={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [3, 3, 2],
                "partial_rotary_factor": 0.25,
            }
        },
        options=("--no-mtp",),
    ),
    "nemotron_h": Small(
        "nemotron_h",
        "NemotronHForCausalLM",
        {
            "layers_block_type": ["mamba", "mlp", "attention"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "n_groups": 2,
            "ssm_state_size": 16,
            "head_dim": 64,
        },
        published={"hybrid_override_pattern": "M-*", "num_hidden_layers": 3},
        unpublished=(
            *("num_experts_per_tok", "n_routed_experts", "n_group", "topk_group"),
            "layers_block_type",
        ),
    ),
    "nemotron_h_moe": Small(
        "nemotron_h_moe",
        "NemotronHForCausalLM",
        {
            "layers_block_type": ["mamba", "moe", "attention"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "n_groups": 2,
            "ssm_state_size": 16,
            "head_dim": 64,
            **ROUTED,
            "moe_shared_expert_intermediate_size": 256,
        },
    ),
    "lfm2": Small(
        "lfm2",
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    "lfm2moe": Small(
        "lfm2moe",
        "Lfm2MoeForCausalLM",
        {"layer_types": ["conv", "full_attention"], **EXPERTS, "num_dense_layers": 1},
    ),
    "granitehybrid": Small(
        "granitehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            **LOCAL,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 64,
            "mamba_d_state": 16,
            "shared_intermediate_size": 128,
            "intermediate_size": 128,
        },
        published={"layer_types": ["mamba", "attention"]},
    ),
    "jamba": Small(
        "jamba",
        "JambaForCausalLM",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 16,
            "use_mamba_kernels": False,
            "intermediate_size": 256,
        },
        "pieces",
    ),
    "falcon-h1": Small(
        "falcon-h1",
        "FalconH1ForCausalLM",
        {
            "head_dim": 64,
            "mamba_d_ssm": 256,
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    "mamba": Small("mamba", "MambaForCausalLM", {"state_size": 8, "time_step_rank": 16}),
    "mamba2": Small(
        "mamba2",
        "Mamba2ForCausalLM",
        {"num_heads": 8, "head_dim": 64, "state_size": 16, "n_groups": 1, "expand": 2},
    ),
    # Newer ones.
    "glm-dsa": Small(
        "glm-dsa",
        "GlmMoeDsaForCausalLM",
        {**ROUTED, **LATENT, **INDEXED, "n_shared_experts": 1, "moe_intermediate_size": 128},
    ),
    "laguna": Small(
        "laguna",
        "LagunaForCausalLM",
        {
            **EXPERTS,
            "head_dim": 64,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 128,
            "sliding_window": 64,
        },
    ),
    "exaone-moe": Small(
        "exaone-moe",
        "ExaoneMoeForCausalLM",
        {**EXPERTS, "head_dim": 64, "sliding_window": 64, "moe_intermediate_size": 128},
        published={"scoring_func": "sigmoid"},
    ),
    "cohere2moe": Small(
        "cohere2moe",
        "Cohere2MoeForCausalLM",
        {**EXPERTS, "head_dim": 64, "sliding_window": 64, "intermediate_size": 128},
        published={"rotary_pct": 1.0},
    ),
    "mimo2": Small(
        "mimo2",
        "MiMoV2FlashForCausalLM",
        {
            **ROUTED,
            "n_shared_experts": None,
            "head_dim": 64,
            "v_head_dim": 32,
            "sliding_window": 64,
            "moe_intermediate_size": 128,
        },
        published={
            "swa_head_dim": 64,
            "swa_v_head_dim": 32,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "topk_method": "noaux_tc",
            "hybrid_layer_pattern": [0, 1],
            "scoring_func": "sigmoid",
            "n_shared_experts": None,
            "partial_rotary_factor": 0.5,
            "rope_theta": 5000000.0,
            "swa_rope_theta": 10000.0,
        },
        unpublished=("rope_parameters",),
    ),
    "hy_v3": Small(
        "hy_v3", "HYV3ForCausalLM", {**EXPERTS, "head_dim": 64, "moe_intermediate_size": 128}
    ),
    "kimi-linear": Small(
        "kimi-linear",
        "KimiLinearForCausalLM",
        {
            **LATENT,
            "q_lora_rank": None,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "moe_intermediate_size": 128,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_head_dim": 32,
            "linear_num_heads": 4,
            "mlp_layer_types": ["sparse", "sparse"],
        },
        published={
            "linear_attn_config": {
                "full_attn_layers": [2],
                "kda_layers": [1],
                "head_dim": 32,
                "num_heads": 4,
                "short_conv_kernel_size": 4,
            },
            "first_k_dense_replace": 0,
            "moe_router_activation_func": "sigmoid",
        },
    ),
    "granite_swa": Small("granite_swa", "GraniteSWAForCausalLM", {"sliding_window": 64}),
    "mistral4": Small(
        "mistral4",
        "Mistral4ForCausalLM",
        {
            **ROUTED,
            **LATENT,
            "first_k_dense_replace": 0,
            "moe_intermediate_size": 128,
            "rope_parameters": YARN,
        },
        published={"architectures": ["Mistral3ForConditionalGeneration"]},
    ),
    "minimax-m3": Small(
        "minimax-m3",
        "MiniMaxM3SparseForConditionalGeneration",
        {
            "text_config": {
                **LOCAL,
                "head_dim": 64,
                "intermediate_size": 128,
                "dense_intermediate_size": 256,
                "shared_intermediate_size": 128,
                "rotary_dim": 32,
                "mlp_layer_types": ["dense", "sparse"],
                "layer_types": ["full_attention", "minimax_m3_sparse"],
                "index_n_heads": 2,
                "index_head_dim": 32,
            },
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "projector_hidden_size": 64,
            "merged_hidden_size": 256,
        },
        published={
            "n_shared_experts": 1,
            "moe_layer_freq": [0, 1],
            "scoring_func": "sigmoid",
            "sparse_attention_config": {
                "sparse_num_index_heads": 2,
                "sparse_index_dim": 32,
                "sparse_topk_blocks": 16,
                "sparse_block_size": 128,
                "sparse_local_block": 1,
            },
        },
    ),
    "glm5-next": Small(
        "glm5-next",
        "Glm5NextForConditionalGeneration",
        {
            "text_config": {
                **ROUTED,
                **LATENT,
                **INDEXED,
                "qk_rope_head_dim": 0,
                "moe_intermediate_size": 128,
                "layer_types": ["linear_attention", "indexed_attention"],
                "indexer_types": ["full", "full"],
                "mlp_layer_types": ["dense", "sparse"],
                "linear_head_dim": 32,
                "linear_num_heads": 4,
                "index_kpool": 4,
                "head_dim": 0,
            },
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 256,
                "projection_intermediate_size": 128,
            },
        },
        published={
            "mla_use_nope": True,
            "first_k_dense_replace": 1,
            "linear_attn_config": {
                "num_heads": 4,
                "head_dim": 32,
                "short_conv_kernel_size": 4,
                "gate_lower_bound": -5.0,
            },
        },
    ),
    "hrm_text": Small(
        "hrm_text",
        "HrmTextForCausalLM",
        {
            "head_dim": 64,
            "num_layers_per_stack": 1,
            "num_key_value_heads": None,
            "intermediate_size": 256,
        },
    ),
    "mellum": Small(
        "mellum",
        "MellumForCausalLM",
        {
            **LOCAL,
            "head_dim": 64,
            "moe_intermediate_size": 128,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "dbrx": Small(
        "dbrx",
        "DbrxForCausalLM",
        {
            "d_model": 256,
            "n_heads": 4,
            "n_layers": 1,
            "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "deepseek": Small(
        "deepseek",
        "Dots1ForCausalLM",
        {**ROUTED, "intermediate_size": 256},
        published={"architectures": ["DeepseekForCausalLM"], "model_type": "deepseek"},
        dropped=r"[qk]_norm|e_score_correction_bias",
    ),
    # Without attention.
    "rwkv6": Small(
        "rwkv6",
        "Rwkv6ForCausalLM",
        {**RWKV, "rescale_every": 6},
        "world",
        shapes=rwkv.rwkv6(N_TOKENS),
    ),
    "rwkv7": Small(
        "rwkv7",
        "Rwkv7ForCausalLM",
        {
            **RWKV,
            "lora_rank_decay": 32,
            "lora_rank_iclr": 32,
            "lora_rank_value_residual_mix": 32,
            "lora_rank_gate": 32,
        },
        "world",
        shapes=rwkv.rwkv7(N_TOKENS),
    ),
    # Encoders, and both.
    "t5": Small(
        "t5",
        "T5ForConditionalGeneration",
        {
            "d_ff": 512,
            "d_kv": 64,
            "num_hidden_layers": 1,
            "num_decoder_layers": 1,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
        "unigram",
    ),
    "t5encoder": Small(
        "t5encoder",
        "T5EncoderModel",
        {"hidden_size": 192, "d_ff": 352, "d_kv": 32},
        "unigram",
    ),
    "bert": Small("bert", "BertModel", ENCODER, "words"),
    "roberta": Small("bert", "RobertaModel", {**ENCODER, **NARROW}),
    "nomic-bert": Small(
        "nomic-bert",
        "NomicBertModel",
        ENCODER,
        "words",
        published={
            "n_positions": 2048,
            "activation_function": "swiglu",
            "causal": False,
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "prenorm": False,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "rotary_emb_base": 1000,
            "layer_norm_epsilon": 1e-12,
            "n_embd": 256,
            "n_head": 4,
            "n_layer": 2,
            "n_inner": 512,
        },
    ),
    "modern-bert": Small(
        "modern-bert", "ModernBertModel", ENCODER, published={"layer_norm_eps": 1e-5}
    ),
    "eurobert": Small("eurobert", "EuroBertModel", published={"classifier_pooling": "mean"}),
    "gemma-embedding": Small("gemma-embedding", "Gemma3TextModel", {"head_dim": 64}, "pieces"),
}

# llama.cpp reads these, and aborts when it is to run them; the reason was not looked for.
NOT_RUN = frozenset({"gemma-embedding", "glm-dsa", "llama4"})
