"""Checkpoints in the forms and shapes that publishers store them in, as data.

What `small.SMALL` is for architectures this is for what lies in a folder: weights in eight or four
bits, layers of prediction, vision and audio parts, PyTorch's own files, tokenizers that want code.
Names of tensors, entries of config.json and further files are those of published models;
``like`` says of which.
"""

from dataclasses import replace

from tests.architectures.coded import CODED
from tests.architectures.handmade import HANDMADE
from tests.architectures.quantizations import (
    CT_NVFP4,
    EIGHT,
    FP8_BLOCKS,
    MIXED_LAYERS,
    MODELOPT,
    MXFP4,
    NVFP4,
    compressed,
    gptq,
    integers,
)
from tests.architectures.small import EXPERTS, LATENT, LOCAL, ROUTED, SMALL, Small
from tests.architectures.stored_model import Stored
from tests.architectures.wrappers import WRAPPERS

QWEN3 = Small("qwen3", "Qwen3ForCausalLM", {"head_dim": 64})
# Experts as wide as one and a half blocks.
QWEN3_MOE = replace(
    SMALL["qwen3moe"],
    config={**EXPERTS, "head_dim": 64, "num_hidden_layers": 1, "moe_intermediate_size": 192},
)
DEEPSEEK = Small(
    "deepseek2",
    "DeepseekV3ForCausalLM",
    {**ROUTED, **LATENT, "intermediate_size": 256, "moe_intermediate_size": 96},
    published={"num_nextn_predict_layers": 1},
    predictor="layer",
)

STORED: dict[str, Stored] = {
    # Eight bits.
    "deepseek-v3-fp8": Stored(DEEPSEEK, "deepseek-ai/DeepSeek-V3", FP8_BLOCKS),
    "minimax-m2-fp8": Stored(
        replace(
            SMALL["minimax-m2"],
            config={**LOCAL, "head_dim": 64, "intermediate_size": 160},
        ),
        "MiniMaxAI/MiniMax-M2",
        {
            **FP8_BLOCKS,
            "fmt": "float8_e4m3fn",
            "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
        },
    ),
    "qwen3moe-fp8": Stored(
        QWEN3_MOE,
        "Qwen/Qwen3-30B-A3B-FP8",
        {
            **FP8_BLOCKS,
            "modules_to_not_convert": [
                "lm_head",
                "model.layers.0.input_layernorm",
                "model.layers.0.mlp.gate",
                "model.layers.0.post_attention_layernorm",
            ],
        },
    ),
    "qwen35-fp8": Stored(
        SMALL["qwen35"], "Qwen/Qwen3.5-27B-FP8", {**FP8_BLOCKS, "modules_to_not_convert": []}
    ),
    "qwen3-fp8-channel": Stored(
        QWEN3,
        "RedHatAI/Qwen3-8B-FP8-dynamic",
        compressed(
            "float-quantized",
            {**EIGHT, "strategy": "channel"},
            {**EIGHT, "strategy": "token", "dynamic": True, "observer": None},
        ),
    ),
    "qwen3moe-fp8-ct-block": Stored(
        QWEN3_MOE,
        "RedHatAI/Qwen3-30B-A3B-FP8-block",
        compressed(
            "float-quantized",
            {**EIGHT, "strategy": "block", "block_structure": [128, 128]},
            {**EIGHT, "strategy": "group", "group_size": 128, "dynamic": True, "observer": None},
        ),
    ),
    "llama-int8": Stored(
        SMALL["llama"],
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
        compressed(
            "int-quantized",
            {"num_bits": 8, "type": "int", "strategy": "channel"},
            {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        ),
    ),
    # NVIDIA's four bits.
    "llama-nvfp4": Stored(
        SMALL["llama"],
        "nvidia/Llama-3.1-8B-Instruct-FP4",
        older_quantization={"quant_method": "modelopt", "quant_algo": "NVFP4"},
        files={
            "hf_quant_config.json": {
                **MODELOPT,
                "quantization": {
                    "quant_algo": "NVFP4",
                    "kv_cache_quant_algo": "FP8",
                    "group_size": 16,
                    "exclude_modules": ["lm_head"],
                },
            }
        },
    ),
    "qwen3moe-nvfp4": Stored(
        QWEN3_MOE,
        "nvidia/Qwen3-30B-A3B-NVFP4",
        NVFP4,
        files={
            "hf_quant_config.json": {
                **MODELOPT,
                "quantization": {
                    "quant_algo": "NVFP4",
                    "kv_cache_quant_algo": None,
                    "group_size": 16,
                    "exclude_modules": ["lm_head", "model.layers.0.mlp.gate"],
                },
            }
        },
    ),
    # Its linear layers' heads are put into another order.
    "qwen35-nvfp4": Stored(SMALL["qwen35"], "nvidia/Qwen3.5-397B-A17B-NVFP4", NVFP4),
    "qwen3-nvfp4-mixed": Stored(
        QWEN3,
        "ModelOpt's MIXED_PRECISION",
        {
            **MODELOPT,
            "ignore": ["lm_head"],
            "quant_algo": "MIXED_PRECISION",
            "quant_method": "modelopt",
            "quantized_layers": MIXED_LAYERS,
        },
        files={
            "hf_quant_config.json": {
                **MODELOPT,
                "quantization": {
                    "quant_algo": "MIXED_PRECISION",
                    "kv_cache_quant_algo": "FP8",
                    "quantized_layers": MIXED_LAYERS,
                },
            }
        },
    ),
    "qwen3-nvfp4-ct": Stored(QWEN3, "RedHatAI/Qwen3-32B-NVFP4", CT_NVFP4),
    "qwen3moe-nvfp4-ct": Stored(QWEN3_MOE, "RedHatAI/Qwen3-30B-A3B-NVFP4", CT_NVFP4),
    # Integers of four and eight bits, and three values.
    "qwen3-int4-g32": Stored(
        QWEN3, "moonshotai/Kimi-K2-Thinking (its form)", integers(32, symmetric=True)
    ),
    "qwen3moe-int4-g64-zero": Stored(
        QWEN3_MOE, "llm-compressor's AWQ", integers(64, symmetric=False)
    ),
    "llama-int4-g128": Stored(
        SMALL["llama"],
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
        integers(128, symmetric=True),
    ),
    "qwen3-int4-g128-zero": Stored(
        QWEN3, "llm-compressor's W4A16_ASYM", integers(128, symmetric=False)
    ),
    "qwen3-gptq4": Stored(
        QWEN3, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", gptq(4, sym=False, desc_act=True)
    ),
    "qwen3-gptq8": Stored(
        QWEN3, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", gptq(8, sym=True, desc_act=False)
    ),
    # Without this the converter mixes lazy tensors with others when it takes bytes apart.
    "llama-bitnet": Stored(
        replace(SMALL["llama"], options=("--no-lazy",)),
        "tiiuae/Falcon3-7B-Instruct-1.58bit",
        {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"},
    ),
    # What the converter does not read.
    "qwen3-fp8-tensor": Stored(
        QWEN3,
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8",
        compressed(
            "float-quantized", {**EIGHT, "strategy": "tensor"}, {**EIGHT, "strategy": "tensor"}
        ),
        refused='strategy == "channel" or strategy == "block"',
    ),
    "qwen3moe-mxfp4-ct": Stored(
        QWEN3_MOE,
        "llm-compressor's MXFP4A16",
        compressed("mxfp4-pack-quantized", MXFP4, None),
        refused="Quant format 'mxfp4-pack-quantized' for method 'compressed-tensors'",
    ),
    "qwen3-awq": Stored(
        QWEN3,
        "Qwen/Qwen3-8B-AWQ",
        {
            "bits": 4,
            "group_size": 128,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        },
        refused="Quant method is not yet supported: 'awq'",
    ),
    "bitnet-2b": Stored(
        Small("bitnet", "BitNetForCausalLM", {"tie_word_embeddings": True}),
        "microsoft/bitnet-b1.58-2B-4T",
        {
            "linear_class": "autobitlinear",
            "quant_method": "bitnet",
            "quantization_mode": "offline",
        },
        refused="Can not map tensor",
    ),
    # Layers that predict one more token.
    "qwen3next-mtp": Stored(
        replace(SMALL["qwen3next"], options=(), predictor="mtp"),
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
    ),
    "glm4moe-mtp": Stored(
        replace(
            SMALL["glm4moe"],
            config={
                **ROUTED,
                "head_dim": 64,
                "intermediate_size": 256,
                "moe_intermediate_size": 96,
            },
            published={"num_nextn_predict_layers": 1},
            predictor="layer",
        ),
        "zai-org/GLM-4.5-Air",
    ),
    # PyTorch's own files.
    "qwen3-bin": Stored(SMALL["qwen3"], "models of 2023", n_pickles=1),
    "mixtral-bin-shards": Stored(SMALL["mixtral"], "models of 2023", n_pickles=3),
    **WRAPPERS,
    **CODED,
    **HANDMADE,
}
