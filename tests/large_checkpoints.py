"""Checkpoints of any size: random weights, written as a stream.

For benchmarks, and for tests of how much memory a build takes.
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantkit.families import find_family
from tests.random_checkpoints import config_of, write_tokenizer
from tests.safetensors_writer import to_bf16

# The weights are one random block over and over, begun anywhere in it for each tensor: the disk
# and not the generator sets the pace. Its odd length shifts it against rows and slabs.
_BLOCK_ELEMENTS = 4 * 2**20 + 1
_BF16_BYTES = 2


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
    files = _distribute(shapes, shard_size)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as stream:
            _write_header(stream, {name: shapes[name] for name in names})
            if hollow:
                n_bytes = sum(prod(shapes[name]) for name in names) * _BF16_BYTES
                stream.truncate(stream.tell() + n_bytes)
                continue
            for name in names:
                block = norms if name.endswith("norm.weight") else weights
                start = int(rng.integers(_BLOCK_ELEMENTS)) * _BF16_BYTES
                _write_data(stream, block, start, prod(shapes[name]) * _BF16_BYTES)
    total_size = sum(map(prod, shapes.values())) * _BF16_BYTES
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder)
    return folder


def _distribute(shapes: Mapping[str, Sequence[int]], shard_size: int) -> list[list[str]]:
    """The tensors of each file, in order."""
    files: list[list[str]] = []
    left = 0
    for name, shape in shapes.items():
        n_bytes = prod(shape) * _BF16_BYTES
        if not files or n_bytes > left:
            files.append([])
            left = shard_size
        files[-1].append(name)
        left -= n_bytes
    return files


def _write_header(stream: BinaryIO, shapes: Mapping[str, Sequence[int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * _BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    stream.write(len(raw).to_bytes(8, "little") + raw)


def _write_data(stream: BinaryIO, block: memoryview, start: int, n_bytes: int) -> None:
    while n_bytes:
        n_bytes -= stream.write(block[start : start + n_bytes])
        start = 0
