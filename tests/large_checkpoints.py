"""Checkpoints of any size: random weights, written as a stream.

For benchmarks, and for tests of how much memory a build takes.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.families import find_family
from tests.large_experts import Shapes, distribute, write_data, write_header
from tests.random_checkpoints import config_of, write_tokenizer
from tests.safetensors_writer import to_bf16

# The weights are one random block over and over, begun anywhere in it for each tensor: the disk
# and not the generator sets the pace. Its odd length shifts it against rows and slabs.
_BLOCK_ELEMENTS = 4 * 2**20 + 1
_BF16_BYTES = 2

# Arguments of `large_checkpoint`.
MIXTRAL_8X22B: dict[str, Any] = {
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def large_checkpoint(
    folder: Path,
    family: str = "mixtral",
    *,
    shard_size: int = 5 * 10**9,
    seed: int = 0,
    hollow: bool = False,
    **changes: Any,
) -> Path:
    """Write a bfloat16 checkpoint folder in several files, in little memory, and return it.

    Args:
        folder: where; it is made.
        family: a key of ``random_checkpoints.ARCHITECTURES``.
        shard_size: the most tensor bytes per file, as far as whole tensors allow.
        seed: of the weights.
        hollow: leave holes where weights would be, for what only reads headers.
        changes: entries of ``config_of``'s config.json to replace. The tokenizer has fewer pieces
            than a large ``vocab_size``; llama.cpp's converter and quantkit pad it alike.

    """
    config = config_of(family, **changes)
    shapes = find_family(config).describe(config, ()).sources
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(_BLOCK_ELEMENTS, np.float32) * np.float32(0.05)
    weights, norms = memoryview(to_bf16(values).data), memoryview(to_bf16(values + 1).data)
    del values
    folder.mkdir(parents=True)
    stored: Shapes = {name: ("BF16", tuple(shape)) for name, shape in shapes.items()}
    files = distribute(stored, shard_size)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as stream:
            write_header(stream, {name: stored[name] for name in names})
            if hollow:
                n_bytes = sum(prod(shapes[name]) for name in names) * _BF16_BYTES
                stream.truncate(stream.tell() + n_bytes)
                continue
            for name in names:
                block = norms if name.endswith("norm.weight") else weights
                start = int(rng.integers(_BLOCK_ELEMENTS)) * _BF16_BYTES
                write_data(stream, block, start, prod(shapes[name]) * _BF16_BYTES)
    total_size = sum(map(prod, shapes.values())) * _BF16_BYTES
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder)
    return folder
