"""Packing to AutoGPTQ's format and back; the words themselves for each width."""

import numpy as np
import pytest

from quantkit.formats.gptq.packing import pack, unpack
from quantkit.formats.gptq.stored import fits, packed_shapes, quantize_config

BITS = (2, 3, 4, 8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(32, 32, 32), (1056, 96, -1), (64, 384, 128)]
)
def test_what_is_packed_unpacks(bits: int, rows: int, columns: int, group_size: int) -> None:
    rng = np.random.default_rng(bits)
    groups = 1 if group_size == -1 else columns // group_size
    levels = rng.integers(0, 2**bits, (rows, columns), np.uint8)
    scales = rng.random((rows, groups)).astype(np.float16).astype(np.float32)
    zeros = rng.integers(1, 2**bits, (rows, groups)).astype(np.float32)
    packed = pack(levels, scales, zeros, bits)
    group = np.arange(columns) // (columns // groups)
    wanted = (levels - zeros[:, group]) * scales[:, group]
    assert (unpack(packed, bits) == wanted).all()
    assert (unpack(packed, bits, 8, 20) == wanted[8:28]).all()
    dtypes = {"I32": np.int32, "F16": np.float16}
    for part, (dtype, shape) in packed_shapes((rows, columns), bits, group_size).items():
        assert getattr(packed, part).shape == shape
        assert getattr(packed, part).dtype == dtypes[dtype]


def test_three_bits_as_ten_levels_and_a_split_one() -> None:
    """Word by word, as auto-gptq's pack does it."""
    levels = np.arange(32, dtype=np.uint8)[None] * 5 % 8
    q = [int(level) for level in levels[0]]
    first = sum(q[j] << 3 * j for j in range(10)) | (q[10] & 3) << 30
    second = q[10] >> 2 | sum(q[11 + j] << 3 * j + 1 for j in range(10)) | (q[21] & 1) << 31
    third = q[21] >> 1 | sum(q[22 + j] << 3 * j + 2 for j in range(10))
    scales, zeros = np.ones((32, 1), np.float32), np.full((32, 1), 4, np.float32)
    packed = pack(np.repeat(levels, 32, 0), scales, zeros, 3)
    words = packed.qweight[:, 0].view(np.uint32).tolist()
    assert words == [first, second, third]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_whole_fractions_of_a_word(bits: int) -> None:
    levels = (np.arange(32) * 7 % 2**bits).astype(np.uint8)[None].repeat(32, 0)
    scales, zeros = np.ones((32, 1), np.float32), np.full((32, 1), 2, np.float32)
    packed = pack(levels, scales, zeros, bits)
    per_word = 32 // bits
    for word, at in enumerate(range(0, 32, per_word)):
        wanted = sum(int(levels[0, at + j]) << bits * j for j in range(per_word))
        assert packed.qweight[word, 0].view(np.uint32) == wanted
    assert packed.qzeros[0, 0].view(np.uint32) == sum(1 << bits * j for j in range(per_word))


def test_the_config_has_what_both_readers_take() -> None:
    """What auto-gptq 0.7.1 writes, but for the key that GPTQModel 7.7 refuses."""
    found = quantize_config(4, 128, 0.01, act_order=True, symmetric=False)
    auto_gptq = {
        "bits", "group_size", "damp_percent", "desc_act", "static_groups", "sym", "true_sequential",
        "model_name_or_path", "model_file_base_name",
    }  # fmt: skip
    assert set(found) == auto_gptq | {"quant_method", "checkpoint_format"}
    assert found["checkpoint_format"] == found["quant_method"] == "gptq"


def test_what_does_not_fit() -> None:
    assert fits((64, 256), 128)
    assert fits((64, 96), -1)
    assert not fits((64, 96), 128)
    assert not fits((48, 128), 128)
    assert not fits((64, 48), -1)
    assert not fits((64, 128), 0)
