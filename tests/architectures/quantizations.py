"""``quantization_config`` as tools write it into config.json."""

from typing import Any

from tests.architectures.small import Config


def compressed(form: str, weights: Config, incoming: Config | None, **more: Any) -> Config:
    """``quantization_config`` of compressed-tensors, with one group for all linear layers."""
    settings: Config = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None,
        "observer": "minmax",
        "observer_kwargs": {},
        "symmetric": True,
    }
    group = {
        "input_activations": None if incoming is None else {**settings, **incoming},
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {**settings, **weights},
    }
    return {
        "config_groups": {"group_0": group},
        "format": form,
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        **more,
    }


def integers(group_size: int, *, symmetric: bool) -> Config:
    """Of four bits, in words of 32."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size}
    return compressed("pack-quantized", {**weights, "symmetric": symmetric}, None)


def gptq(bits: int, *, sym: bool, desc_act: bool) -> Config:
    return {
        "bits": bits,
        "checkpoint_format": "gptq",
        "damp_percent": 0.1,
        "desc_act": desc_act,
        "group_size": 128,
        "model_file_base_name": None,
        "model_name_or_path": None,
        "quant_method": "gptq",
        "static_groups": False,
        "sym": sym,
        "true_sequential": True,
    }


def modelopt_group(bits: int) -> Config:
    """A group of ModelOpt's ``quantization_config``."""
    entries: Config = {"dynamic": False, "num_bits": bits, "type": "float"}
    if bits == 4:
        entries = {**entries, "group_size": 16}
    return {"input_activations": entries, "weights": entries}


FP8_BLOCKS: Config = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
EIGHT: Config = {"num_bits": 8, "type": "float"}
FOUR: Config = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}
MXFP4: Config = {
    "num_bits": 4,
    "type": "float",
    "strategy": "group",
    "group_size": 32,
    "scale_dtype": "torch.uint8",
}
MODELOPT: Config = {"producer": {"name": "modelopt", "version": "0.33.1"}}
NVFP4: Config = {
    **MODELOPT,
    "config_groups": {"group_0": {**modelopt_group(4), "targets": ["Linear"]}},
    "ignore": ["lm_head", "model.layers.0.mlp.gate"],
    "quant_algo": "NVFP4",
    "quant_method": "modelopt",
}
CT_NVFP4: Config = compressed("nvfp4-pack-quantized", FOUR, {**FOUR, "dynamic": "local"})
MIXED_LAYERS: Config = {
    **{f"model.layers.0.self_attn.{part}_proj": {"quant_algo": "FP8"} for part in "qkvo"},
    **{
        f"model.layers.0.mlp.{part}_proj": {"quant_algo": "NVFP4", "group_size": 16}
        for part in ("gate", "up", "down")
    },
    # Weights only: what goes in stays wide.
    **{
        f"model.layers.1.mlp.{part}_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16}
        for part in ("gate", "up", "down")
    },
}
