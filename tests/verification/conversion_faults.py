"""Faults that a conversion may have, put into a sound GGUF of floats, of any architecture.

Each takes the file and edits it where it lies. All of them load in llama.cpp.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from numpy.typing import NDArray

Fault = Callable[[Path], None]


def _key(file: Path, name: str) -> NDArray[Any]:
    """The number that a key of the architecture has, to be written over."""
    reader = GGUFReader(file, "r+")
    architecture = str(reader.fields["general.architecture"].contents())
    value: NDArray[Any] = reader.fields[f"{architecture}.{name}"].parts[-1]
    return value


def _tensors(file: Path, pattern: str) -> dict[str, NDArray[Any]]:
    tensors = GGUFReader(file, "r+").tensors
    found = {t.name: t.data for t in tensors if re.fullmatch(pattern, t.name)}
    assert found, pattern
    return found


def wrong_rope_base(file: Path) -> None:
    _key(file, "rope.freq_base")[0] *= 50


def rope_scaling_dropped(file: Path) -> None:
    """Of Llama 3: the factors of its frequencies."""
    for factors in _tensors(file, "rope_freqs.weight").values():
        factors[:] = 1


def rows_not_permuted(file: Path) -> None:
    """Rows of q and k in the order of the checkpoint."""
    heads = {"q": int(_key(file, "attention.head_count")[0])}
    heads["k"] = int(_key(file, "attention.head_count_kv")[0])
    for name, matrix in _tensors(file, r"blk\.\d+\.attn_[qk]\.weight").items():
        n = heads[name.removesuffix(".weight")[-1]]
        rows = matrix.reshape(n, len(matrix) // n // 2, 2, -1)
        matrix[:] = rows.swapaxes(1, 2).reshape(matrix.shape).copy()


def norms_without_their_one(file: Path) -> None:
    for norm in _tensors(file, r".*_norm\.weight").values():
        norm -= 1


def gate_and_up_swapped(file: Path) -> None:
    gates = _tensors(file, r"blk\.\d+\.ffn_gate(_exps)?\.weight")
    for name, gate in gates.items():
        [up] = _tensors(file, re.escape(name.replace("gate", "up"))).values()
        gate[:], up[:] = up.copy(), gate.copy()


def experts_swapped(file: Path) -> None:
    """The first two of every layer, under each other's router rows."""
    for matrices in _tensors(file, r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight").values():
        matrices[[0, 1]] = matrices[[1, 0]]


def router_bias_dropped(file: Path) -> None:
    for bias in _tensors(file, r"blk\.\d+\.exp_probs_b(\.bias)?").values():
        bias[:] = 0


def softcap_dropped(file: Path) -> None:
    _key(file, "final_logit_softcapping")[0] = 1e9


def window_dropped(file: Path) -> None:
    _key(file, "attention.sliding_window")[0] = 2**24


def head_half_rotated(file: Path) -> None:
    """The length of a head taken for half of what it is, where llama.cpp cannot tell."""
    _key(file, "rope.dimension_count")[0] //= 2
