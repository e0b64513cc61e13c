"""Deliberate faults in GGUF files of tiny-mixtral: all of them load, run and write fluent text."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.gguf import Header, HeaderTensor, read_header

N_HEAD, N_HEAD_KV, N_EXPERTS = 4, 2, 8
ROPE_BASE = 1_000_000.0


def with_fault(healthy: Path, faulty: Path, fault: Callable[[Path], None]) -> Path:
    """A copy of a file with a fault in it."""
    shutil.copyfile(healthy, faulty)
    fault(faulty)
    return faulty


def swap_experts(file: Path, layer: int = 1, first: int = 0, second: int = 1) -> None:
    """Two experts of one layer under each other's router rows."""
    for part in ("gate", "up", "down"):
        blocks = _open(file, f"blk.{layer}.ffn_{part}_exps.weight").reshape(N_EXPERTS, -1)
        blocks[[first, second]] = blocks[[second, first]]


def zero_expert(file: Path, layer: int = 3, expert: int = 3) -> None:
    """All of one expert's blocks zero, scales included."""
    for part in ("gate", "up", "down"):
        _open(file, f"blk.{layer}.ffn_{part}_exps.weight").reshape(N_EXPERTS, -1)[expert] = 0


def swap_two_embeddings(file: Path) -> None:
    """Two tokens under each other's numbers."""
    header = read_header(file)
    (tensor,) = (tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
    rows = _map(file, header, tensor).reshape(tensor.shape[0], -1)
    rows[[200, 201]] = rows[[201, 200]]


def leave_rows_as_they_were(file: Path) -> None:
    """The rows of q and k in the checkpoint's order, not in that of llama.cpp's rotation."""
    header = read_header(file)
    for tensor in header.tensors:
        heads = {"attn_q.weight": N_HEAD, "attn_k.weight": N_HEAD_KV}.get(tensor.name[6:])
        if heads:
            rows = _map(file, header, tensor).reshape(heads, tensor.shape[0] // heads // 2, 2, -1)
            rows[:] = rows.swapaxes(1, 2).copy().reshape(rows.shape)


def scale_norm(file: Path, layer: int = 1) -> None:
    """One layer's norm 1.1 times what it is."""
    norm = _open(file, f"blk.{layer}.ffn_norm.weight").view(np.float32)
    norm *= np.float32(1.1)


def scale_tensors(file: Path, part: str, factor: float) -> None:
    """Tensors with such a part in their names, stored as floats, so many times what they are."""
    header = read_header(file)
    chosen = [tensor for tensor in header.tensors if part in tensor.name]
    assert chosen
    for tensor in chosen:
        raw = _map(file, header, tensor)
        if tensor.encoding.name == "F32":
            raw.view(np.float32)[:] *= np.float32(factor)
        else:
            assert tensor.encoding.name == "BF16"
            upper = raw.view(np.uint16)
            wide = (upper.astype(np.uint32) << 16).view(np.float32) * np.float32(factor)
            upper[:] = wide.view(np.uint32) >> 16


def change_rope_base(file: Path) -> None:
    """The rotation of most other models."""
    key, value = b"llama.rope.freq_base", struct.pack("<If", 6, ROPE_BASE)
    data = file.read_bytes()
    assert data.count(key + value) == 1
    file.write_bytes(data.replace(key + value, key + struct.pack("<If", 6, 10_000.0)))


FAULTS = {
    "two experts swapped in one layer": swap_experts,
    "q and k rows not permuted": leave_rows_as_they_were,
    "one expert zeroed": zero_expert,
    "a norm scaled by 1.1": scale_norm,
    "the wrong rope base": change_rope_base,
}


def _open(file: Path, name: str) -> NDArray[np.uint8]:
    header = read_header(file)
    [tensor] = [tensor for tensor in header.tensors if tensor.name == name]
    return _map(file, header, tensor)


def _map(file: Path, header: Header, tensor: HeaderTensor) -> NDArray[np.uint8]:
    offset = header.data_offset + tensor.offset
    return np.memmap(file, np.uint8, "r+", offset, (tensor.n_bytes,))
