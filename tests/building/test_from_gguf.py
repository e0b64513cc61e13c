"""A GGUF as the source: the same quants as from its checkpoint, under the same promises."""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from quantkit.api.build import plan
from quantkit.api.options import BuildOptions, EncodingOptions
from quantkit.building.work import prepare
from quantkit.core.errors import (
    CheckpointError,
    GGUFError,
    OutputError,
    PlanError,
    QuantkitError,
    WeightsError,
)
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, build, build_work, manifest_of, small_slabs

QUANTS = ("q8_0", "q5_0", "q4_k_m", "q2_k", "iq4_xs", "f16", "f32")
REQUANTIZING = BuildOptions(encoding=EncodingOptions(allow_requantize=True))


@pytest.fixture(scope="module")
def source(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized GGUF of a checkpoint that is stored as bfloat16."""
    (artifact,) = build(mixtral, tmp_path_factory.mktemp("bf16"), "bf16")
    return artifact.path


@pytest.fixture(scope="module")
def shards(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards; the first of them."""
    work = prepare(mixtral, find_quants(["bf16"]), FileOptions(shard_size=1_100_000))
    (artifact,) = build_work(work, tmp_path_factory.mktemp("shards"))
    files = sorted(artifact.path.parent.rglob("*-of-*.gguf"))
    assert len(files) > 3
    return files[0]


@pytest.fixture(scope="module")
def reference(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a build of the checkpoint itself leaves."""
    out = tmp_path_factory.mktemp("reference")
    build(mixtral, out, *QUANTS)
    return artifacts_in(out)


def test_the_same_bytes_as_from_the_checkpoint(
    source: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    build(source, tmp_path, *QUANTS)
    assert artifacts_in(tmp_path) == reference


def test_split_in_small_slabs_with_one_thread(
    shards: Path, reference: dict[str, str], tmp_path: Path
) -> None:
    work = prepare(shards, find_quants(QUANTS))
    with small_slabs(2**12):
        build_work(work, tmp_path, jobs=1)
    assert artifacts_in(tmp_path) == reference


def test_each_source_byte_is_read_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ranges = os.preadv, []

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = real(fd, buffers, offset)
        ranges.append((str(Path(f"/proc/self/fd/{fd}").readlink()), offset, count))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    work = prepare(shards, find_quants(QUANTS))
    assert not ranges
    build_work(work, tmp_path)
    files = sorted(map(str, shards.parent.glob("*.gguf")))
    assert list(dict.fromkeys(name for name, *_ in ranges)) == files
    for file in files:
        end = 0
        for _, offset, count in (found for found in ranges if found[0] == file):
            assert offset == end  # from front to back
            end += count
        assert end == Path(file).stat().st_size


def test_the_manifest_names_the_gguf(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path, "q8_0")
    (entry,) = manifest_of(tmp_path).values()
    assert [weight["name"] for weight in entry["source"]["weights"]] == [source.name]
    assert entry["source"]["settings"] == []
    assert entry["source"]["family"] == "llama"


def test_another_name_is_in_the_file_and_on_it(source: Path, tmp_path: Path) -> None:
    from quantkit.checkpoint.gguf import read_header

    work = prepare(source, find_quants(["q8_0"]), FileOptions("Another Name"))
    (artifact,) = build_work(work, tmp_path)
    assert artifact.path.name == "Another-Name-Q8_0.gguf"
    was, now = read_header(source).metadata, read_header(artifact.path).metadata
    assert now["general.name"] == "Another Name"
    assert list(now) == list(was)
    assert {key for key in was if was[key] != now[key]} == {"general.name", "general.file_type"}


def test_a_quantized_source(source: Path, tmp_path: Path) -> None:
    (small,) = build(source, tmp_path / "small", "q8_0")
    with pytest.raises(PlanError, match=r"is quantized already .*--allow-requantize"):
        plan(small.path, ["q4_k_m"])
    plan(small.path, ["q4_k_m", "q8_0"], REQUANTIZING)
    again = build(small.path, tmp_path / "again", "q4_k_m", "q8_0")
    assert [a.layout.plan.quant.name for a in again] == ["q8_0", "q4_k_m"]
    # What is to be as it is, is copied; a copy of a quant needs no permission.
    assert again[0].path.read_bytes() == small.path.read_bytes()
    plan(small.path, ["q8_0"])
    (copy,) = build(small.path, tmp_path / "copy", "q8_0")
    assert copy.path.read_bytes() == small.path.read_bytes()


@pytest.mark.parametrize("quants", [["bnb-nf4"], ["q8_0", "bnb-int8"]], ids=["alone", "beside"])
def test_a_gguf_makes_ggufs_only(source: Path, quants: list[str]) -> None:
    with pytest.raises(QuantkitError, match=r"is a GGUF, .*the checkpoint that it was converted"):
        prepare(source, find_quants(quants))


def test_a_weight_that_is_no_number(source: Path, tmp_path: Path) -> None:
    from quantkit.checkpoint.open import open_checkpoint

    raw = bytearray(source.read_bytes())
    tensor = open_checkpoint(source).tensors["blk.0.attn_q.weight"]
    raw[tensor.offset : tensor.offset + 2] = struct.pack("<H", 0x7FC0)
    broken = tmp_path / "Broken-BF16.gguf"
    broken.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_q\.weight .*NaN"):
        build(broken, tmp_path / "out", "q8_0")
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_q\.weight .*NaN"):
        build(broken, tmp_path / "copy", "bf16")  # a copy is checked, too
    assert not artifacts_in(tmp_path / "out")


def test_a_damaged_block_of_a_copy(source: Path, tmp_path: Path) -> None:
    from quantkit.checkpoint.open import open_checkpoint

    (small,) = build(source, tmp_path / "small", "q8_0")
    raw = bytearray(small.path.read_bytes())
    tensor = open_checkpoint(small.path).tensors["blk.0.attn_q.weight"]
    raw[tensor.offset : tensor.offset + 2] = np.float16("nan").tobytes()
    broken = tmp_path / "Broken-Q8_0.gguf"
    broken.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_q\.weight .*Q8_0 are damaged"):
        build(broken, tmp_path / "out", "q8_0")


# Refused.


def renamed(shards: Path, folder: Path) -> list[Path]:
    """Copies of all shards."""
    folder.mkdir()
    copies = [folder / file.name for file in sorted(shards.parent.glob("*.gguf"))]
    for copy in copies:
        copy.write_bytes((shards.parent / copy.name).read_bytes())
    return copies


def test_a_missing_shard(shards: Path, tmp_path: Path) -> None:
    copies = renamed(shards, tmp_path / "copies")
    copies[1].unlink()
    with pytest.raises(GGUFError, match=copies[1].name):
        prepare(copies[0], find_quants(["q8_0"]))


def test_the_second_shard(shards: Path) -> None:
    second = sorted(shards.parent.glob("*.gguf"))[1]
    with pytest.raises(GGUFError, match=r"is shard 2 of \d+; give the first one"):
        prepare(second, find_quants(["q8_0"]))


def test_a_shard_in_the_place_of_another(shards: Path, tmp_path: Path) -> None:
    copies = renamed(shards, tmp_path / "copies")
    copies[2].write_bytes(copies[1].read_bytes())
    with pytest.raises(GGUFError, match=r"says that it is shard 1 of \d+ .*named as 2"):
        prepare(copies[0], find_quants(["q8_0"]))


def edited(
    source: Path, folder: Path, key: str, value: object, renamed: Mapping[str, str] | None = None
) -> Path:
    """The GGUF with another value of a key, or one more key, and other names of tensors."""
    import gguf

    reader = gguf.GGUFReader(source)
    path = folder / "Edited-BF16.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", key):
            continue
        sub = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    if key == "general.architecture":
        writer.kv_data[0][key] = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)
    elif value is not None:
        writer.add_key_value(key, value, kinds[type(value)])
    if key == "general.alignment":
        assert isinstance(value, int)
        writer.data_alignment = value
    for tensor in reader.tensors:
        name = (renamed or {}).get(tensor.name, tensor.name)
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general.architecture", "nobody-knows", r"nobody-knows"),
        ("general.type", "imatrix", r"holds 'imatrix' and no model"),
        ("general.name", 7, r"general\.name as 7, which is not text"),
        ("general.alignment", 64, r"aligned to 64 bytes"),
        ("llama.block_count", 10**9, r"block_count"),
        ("llama.block_count", None, r"block_count"),
        ("llama.attention.head_count", "four", r"head_count"),
    ],
)
def test_metadata_that_no_model_has(
    source: Path, tmp_path: Path, key: str, value: object, said: str
) -> None:
    path = edited(source, tmp_path, key, value)
    with pytest.raises(QuantkitError, match=said) as caught:
        prepare(path, find_quants(["q8_0"]))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "stored"),
    [("", b""), ("x" * 64, b"x" * 64), ("blk.0.zz.weight", b"blk.0.\xff\xff.weight")],
    ids=["none", "long", "bytes"],
)
def test_a_name_that_llama_cpp_does_not_take(
    source: Path, tmp_path: Path, name: str, stored: bytes
) -> None:
    path = edited(source, tmp_path, "general.name", "Odd", renamed={"output_norm.weight": name})
    raw = path.read_bytes()
    table = struct.pack("<Q", len(name)) + name.encode()
    assert not name or raw.count(table) == 1
    path.write_bytes(raw.replace(table, struct.pack("<Q", len(stored)) + stored) if name else raw)
    with pytest.raises(GGUFError, match=r"takes names of 1 to 63 bytes of text"):
        prepare(path, find_quants(["q8_0"]))


def test_more_than_a_gguf(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "More-BF16.gguf"
    path.write_bytes(source.read_bytes() + bytes(100))
    with pytest.raises(GGUFError, match=r"100 bytes after its last tensor"):
        prepare(path, find_quants(["q8_0"]))


def test_a_gguf_by_any_name(source: Path, reference: dict[str, str], tmp_path: Path) -> None:
    bare, capitals = tmp_path / "bare", tmp_path / "Model-8x593K-BF16.GGUF"
    for copy in (bare, capitals):
        copy.write_bytes(source.read_bytes())
    assert prepare(bare, find_quants(["q8_0"])).base_name == "bare"
    build(capitals, tmp_path / "out", "q8_0")
    assert artifacts_in(tmp_path / "out").items() <= reference.items()


def test_where_the_source_lies_nothing_takes_its_place(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    with pytest.raises(OutputError, match=r"is also the source, which is never overwritten"):
        build(copy, tmp_path, "bf16")
    assert copy.read_bytes() == source.read_bytes()


def test_permission_that_nobody_needs(source: Path) -> None:
    with pytest.raises(PlanError, match=r"--allow-requantize does nothing"):
        plan(source, ["q8_0"], REQUANTIZING)


def test_a_path_that_is_no_text(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    (folder / "x.gguf").write_bytes(source.read_bytes())
    with pytest.raises(GGUFError, match=r"a name that is not UTF-8"):
        prepare(folder / "x.gguf", find_quants(["q8_0"]))


def test_a_misspelt_shard_is_no_repository(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.checkpoint.open import open_source

    monkeypatch.chdir(shards.parent.parent)
    with pytest.raises(CheckpointError, match=r"does not exist, though its folder does"):
        open_source(f"{shards.parent.name}/no-such.gguf")


def test_a_link_to_itself(tmp_path: Path) -> None:
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop.name)
    with pytest.raises(GGUFError, match=r"loop\.gguf cannot be read"):
        prepare(loop, find_quants(["q8_0"]))
