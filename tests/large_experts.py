"""Qwen3 MoE checkpoints of any size, as published: expert by expert, in bfloat16 or FP8 blocks.

For benchmarks, and for tests of what llama.cpp's converter describes.
"""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tests.architectures.tokens import byte_level
from tests.safetensors_writer import to_bf16

BLOCK = 128  # rows and columns that share a scale in FP8
# As in `large_checkpoints`: one random block over and over, of an odd length.
_BLOCK_BYTES = 8 * 2**20 + 2
_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
_HEAD = 128

Shapes = dict[str, tuple[str, tuple[int, ...]]]


def large_experts(
    folder: Path,
    *,
    hidden: int,
    width: int,
    experts: int,
    layers: int = 1,
    heads: int = 4,
    kv_heads: int = 1,
    vocab: int = 512,
    fp8: bool = False,
    hollow: bool = False,
    shard_size: int = 5 * 10**9,
    seed: int = 0,
) -> Path:
    """Write a checkpoint folder in several files, in little memory, and return it.

    Args:
        folder: where; it is made.
        hidden: the hidden size.
        width: of an expert.
        experts: per layer.
        layers: how many.
        heads: of queries, 128 wide each.
        kv_heads: of keys and values.
        vocab: tokens; the tokenizer has 512 of them.
        fp8: whether matrices of layers are in FP8, with a scale for each 128 x 128 of them.
        hollow: leave holes where weights would be.
        shard_size: the most tensor bytes per file, as far as whole tensors allow.
        seed: of the weights.

    """
    folder.mkdir(parents=True)
    shapes: Shapes = {}
    for name, shape in _shapes(hidden, width, experts, layers, heads, kv_heads, vocab):
        is_rounded = fp8 and "_proj." in name
        shapes[name] = ("F8_E4M3" if is_rounded else "BF16", shape)
        if is_rounded:
            scales = tuple(-(-size // BLOCK) for size in shape)
            shapes[f"{name}_scale_inv"] = ("F32", scales)
    rng = np.random.default_rng(seed)
    blocks = _blocks(rng)
    files = distribute(shapes, shard_size)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as stream:
            write_header(stream, {name: shapes[name] for name in names})
            for name in names:
                n_bytes = _size(*shapes[name])
                if hollow:
                    stream.truncate(stream.seek(n_bytes, 1))
                else:
                    kind = "norm" if name.endswith("norm.weight") else shapes[name][0]
                    start = int(rng.integers(_BLOCK_BYTES // 8)) * 4
                    write_data(stream, blocks[kind], start, n_bytes)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": width,
        "moe_intermediate_size": width,
        "num_experts": experts,
        "num_experts_per_tok": min(8, experts),
        "norm_topk_prob": True,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _HEAD,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(byte_level())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _shapes(
    hidden: int, width: int, experts: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield f"{at}input_layernorm.weight", (hidden,)
        for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{at}self_attn.{name}_proj.weight", (rows * _HEAD, hidden)
        yield f"{at}self_attn.o_proj.weight", (hidden, heads * _HEAD)
        yield f"{at}self_attn.q_norm.weight", (_HEAD,)
        yield f"{at}self_attn.k_norm.weight", (_HEAD,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        yield f"{at}mlp.gate.weight", (experts, hidden)
        for expert in range(experts):
            own = f"{at}mlp.experts.{expert}."
            yield f"{own}gate_proj.weight", (width, hidden)
            yield f"{own}up_proj.weight", (width, hidden)
            yield f"{own}down_proj.weight", (hidden, width)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _blocks(rng: np.random.Generator) -> dict[str, memoryview]:
    """Random bytes that are sound numbers of each kind."""
    values = rng.standard_normal(_BLOCK_BYTES // 2, np.float32) * np.float32(0.05)
    rounded = rng.integers(0, 256, _BLOCK_BYTES, np.uint8)
    rounded[rounded & 0x7F == 0x7F] = 0  # NaN
    return {
        "BF16": memoryview(to_bf16(values).data).cast("B"),
        "norm": memoryview(to_bf16(values + 1).data).cast("B"),
        "F32": memoryview((values * values + np.float32(1e-4)).data).cast("B"),
        "F8_E4M3": memoryview(rounded.data),
    }


def distribute(shapes: Shapes, shard_size: int) -> list[list[str]]:
    """The tensors of each file, in order."""
    files: list[list[str]] = []
    left = 0
    for name, kind in shapes.items():
        n_bytes = _size(*kind)
        if not files or n_bytes > left:
            files.append([])
            left = shard_size
        files[-1].append(name)
        left -= n_bytes
    return files


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * _BYTES[dtype]


def write_header(stream: BinaryIO, shapes: Shapes) -> None:
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + _size(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    stream.write(len(raw).to_bytes(8, "little") + raw)


def write_data(stream: BinaryIO, block: memoryview, start: int, n_bytes: int) -> None:
    while n_bytes:
        n_bytes -= stream.write(block[start : start + n_bytes])
        start = 0
