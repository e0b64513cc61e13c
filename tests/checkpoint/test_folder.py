import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint.folder import (
    is_artifact,
    is_foreign,
    list_folder,
    open_folder,
    read_json,
)
from quantkit.checkpoint.open import open_checkpoint
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError, GGUFError, SafetensorsError
from tests.safetensors_writer import Tensor, to_bf16, write_checkpoint, write_safetensors

CONFIG = {"architectures": ["MistralForCausalLM"], "hidden_size": 4}
SHARD_1, SHARD_2, SHARD_3 = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
INDEX = "model.safetensors.index.json"


def some_tensors() -> dict[str, Tensor]:
    return {
        "model.embed_tokens.weight": to_bf16(np.arange(24).reshape(6, 4)),
        "model.layers.0.a.weight": np.ones((4, 4), np.float16),
        "model.layers.0.b.weight": np.ones((4, 4), np.float32),
        "model.layers.1.a.weight": np.ones((2, 4), np.float32),
        "model.layers.1.b.weight": np.ones((3, 4), np.float32),
        "model.norm.weight": np.ones(4, np.float32),
    }


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A checkpoint with one weight file."""
    write_checkpoint(tmp_path / "model", some_tensors(), CONFIG)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint with three weight files of two tensors each, and their index."""
    write_checkpoint(tmp_path / "model", some_tensors(), CONFIG, shards=3)
    return tmp_path / "model"


def edit_weight_map(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def refusal(
    read: Callable[[], object], named: Path, *patterns: str, error: type = CheckpointError
) -> str:
    """The one sentence that something is refused with; it names the file and fits the patterns."""
    with pytest.raises(CheckpointError) as caught:
        read()
    message = str(caught.value)
    assert type(caught.value) is error
    assert caught.value.exit_code == 2
    assert message.startswith(f"{named} ")
    assert message.endswith(".")
    assert message.isprintable()
    assert len(message) < len(str(named)) + 900
    for pattern in patterns:
        assert re.search(pattern, message), message
    return message


def open_refused(
    folder: Path, *patterns: str, file: str = "", error: type = CheckpointError
) -> str:
    """How opening a folder is refused, the sentence being about ``file`` in it."""
    return refusal(lambda: open_checkpoint(folder), folder / file, *patterns, error=error)


# --- folders that are read -------------------------------------------------------------------


def test_single_file(single: Path) -> None:
    checkpoint = open_checkpoint(single)
    assert checkpoint.path == single
    assert checkpoint.config == CONFIG
    assert checkpoint.files == (single / "model.safetensors",)
    assert list(checkpoint.tensors) == list(some_tensors())
    norm = checkpoint.tensors["model.norm.weight"]
    with norm.file.open("rb") as file:
        file.seek(norm.offset)
        assert file.read(norm.n_bytes) == np.ones(4, np.float32).tobytes()


def test_shards_with_index(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert [file.name for file in checkpoint.files] == [SHARD_1, SHARD_2, SHARD_3]
    assert list(checkpoint.tensors) == list(some_tensors())
    assert [t.file.name for t in checkpoint.tensors.values()] == [
        *(SHARD_1, SHARD_1, SHARD_2, SHARD_2, SHARD_3, SHARD_3)
    ]


def test_shards_without_index(sharded: Path) -> None:
    with_index = open_checkpoint(sharded)
    (sharded / INDEX).unlink()
    (sharded / "consolidated.safetensors").write_bytes(b"not read")
    assert open_checkpoint(sharded) == with_index


def test_index_wins_over_other_weights(sharded: Path) -> None:
    with_index = open_checkpoint(sharded)
    write_safetensors(sharded / "model-other.safetensors", {"other": np.ones(4, np.float32)})
    (sharded / "pytorch_model.bin").write_bytes(b"not read")
    assert open_checkpoint(sharded) == with_index


@pytest.mark.parametrize("indexed", [True, False])
def test_a_whole_model_wins_over_the_shards_of_another(
    sharded: Path, tmp_path: Path, indexed: bool
) -> None:
    """As in transformers, with an index that names other files or with none.

    llama.cpp's converter takes what the index names.
    """
    single = tmp_path / "whole"
    write_checkpoint(single, some_tensors(), CONFIG)
    alone = open_checkpoint(single)
    for file in sharded.glob("model-*"):
        file.rename(single / file.name)
    if indexed:
        (sharded / INDEX).rename(single / INDEX)
    checkpoint = open_checkpoint(single)
    assert checkpoint.tensors == alone.tensors
    assert checkpoint.files == (single / "model.safetensors",)
    (remark,) = checkpoint.remarks
    assert remark.startswith(f"{single} holds model.safetensors, which alone is built")
    assert SHARD_1 in remark
    assert remark.endswith("are left out. Remove what is of another model.")
    assert alone.remarks == ()


def test_a_whole_pickle_wins_over_its_index(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save({"model.norm.weight": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    stale = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(stale))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.files == (tmp_path / "pytorch_model.bin",)
    assert "'pytorch_model.bin.index.json' beside it is left out" in checkpoint.remarks[0]


def test_an_index_that_names_the_whole_model_holds(single: Path) -> None:
    weight_map = dict.fromkeys([*some_tensors(), "model.absent.weight"], "model.safetensors")
    (single / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"'model\.absent\.weight', missing in"):
        open_checkpoint(single)


def test_links_into_the_hub_cache_are_followed(sharded: Path) -> None:
    blobs, snapshot = sharded.parent / "blobs", sharded.parent / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for i, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / f"{i:040x}")
    checkpoint = open_checkpoint(snapshot)
    assert list(checkpoint.tensors) == list(some_tensors())
    assert checkpoint.files[0] == snapshot / SHARD_1


def test_indexed_buffers_that_no_model_needs_are_not_missed(tmp_path: Path) -> None:
    buffer = "model.layers.0.attention.masked_bias"
    tensors = {**some_tensors(), buffer: np.ones((1, 1), bool)}
    write_checkpoint(tmp_path, tensors, CONFIG, shards=2)
    assert list(open_checkpoint(tmp_path).tensors) == list(some_tensors())


@pytest.mark.parametrize("value", [None, {}])
def test_an_empty_quantization_config_is_none(tmp_path: Path, value: Any) -> None:
    write_checkpoint(tmp_path, some_tensors(), {**CONFIG, "quantization_config": value})
    assert len(open_checkpoint(tmp_path).tensors) == 6


# --- the folder ------------------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    open_refused(folder, "does not exist", "give the folder")


def test_file_instead_of_a_folder(single: Path) -> None:
    open_refused(single / "model.safetensors", "is a file", "give the folder", "config.json")


@pytest.mark.parametrize("name", ["model-Q8_0.gguf", "MODEL.GGUF"])
def test_a_damaged_gguf(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(GGUFError, match="is not a sound GGUF file"):
        open_checkpoint(tmp_path / name)


def test_folder_without_permission(plain_users_folder: Path) -> None:
    folder = plain_users_folder / "model"
    write_checkpoint(folder, some_tensors(), CONFIG)
    folder.chmod(0)
    open_refused(folder, "cannot be read", "Permission denied", "permissions")
    folder.chmod(0o700)


def test_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("model")
    open_refused(tmp_path / "model", "cannot be read", "symbolic links")


# --- config.json and other JSON --------------------------------------------------------------


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    open_refused(single, "no config.json", "give the folder", "all its files")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"<html>", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 1_000_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b'"model"', "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_config_that_is_no_json_object(single: Path, content: bytes, pattern: str) -> None:
    (single / "config.json").write_bytes(content)
    open_refused(single, pattern, "download it again", file="config.json")
    refusal(lambda: read_json(single / "config.json"), single / "config.json", pattern)


def test_json_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    refusal(lambda: read_json(path), path, "does not exist", "download it again")


def test_json_that_is_a_dangling_link(single: Path) -> None:
    (single / "config.json").unlink()
    (single / "config.json").symlink_to("gone")
    open_refused(single, "does not exist", "download it again", file="config.json")


def test_json_that_is_a_folder(tmp_path: Path) -> None:
    refusal(lambda: read_json(tmp_path), tmp_path, "not a regular file")


@pytest.mark.timeout(120)  # time: whoever opens a pipe waits for ever; being refused takes none
def test_json_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    open_refused(tmp_path, "not a regular file", file="config.json")


def test_json_without_permission(plain_users_folder: Path) -> None:
    write_checkpoint(plain_users_folder, some_tensors(), CONFIG)
    (plain_users_folder / "config.json").chmod(0)
    open_refused(plain_users_folder, "Permission denied", "permissions", file="config.json")


def test_json_is_returned_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        '{"b": [0.0, Infinity], "a": "\u00e9", "n": 1000000000000000019884624838656}', "utf-8"
    )
    assert read_json(path) == {"b": [0.0, float("inf")], "a": "\u00e9", "n": int(1e30)}


def test_a_byte_order_mark_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(path) == {}


def test_an_lfs_pointer_in_place_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    refusal(lambda: read_json(path), path, "Git LFS pointer", "git lfs pull")


# --- quantized checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["awq", "bitsandbytes", "hqq"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_quantized_by_its_config(tmp_path: Path, method: str, dtype: Any) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": method, "bits": 4}}
    tensors = {**some_tensors(), "model.layers.0.q.weight": np.ones((4, 4), dtype)}
    write_checkpoint(tmp_path, tensors, config)
    open_refused(tmp_path, "already quantized", f"quant_method '{method}'", "use the original")


@pytest.mark.parametrize("method", ["gptq", "fp8", "compressed-tensors", "bitnet", "modelopt"])
def test_quantized_in_a_form_that_the_converter_reads(tmp_path: Path, method: str) -> None:
    """Its tensors are all there, under the names and dtypes that they are stored in."""
    config = {**CONFIG, "quantization_config": {"quant_method": method}}
    tensors = {**some_tensors(), "model.layers.0.q.weight": np.ones((4, 4), np.uint8)}
    write_checkpoint(tmp_path, tensors, config)
    found = open_folder(tmp_path, list_folder(tmp_path))
    assert is_foreign(found)
    assert found.tensors.keys() == tensors.keys()
    assert found.tensors["model.layers.0.q.weight"].dtype == "U8"
    assert found.config == config


@pytest.mark.parametrize(
    "value", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"bits": 4}, "gptq", 4]
)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_config_that_was_left_over_is_said_and_left_out(
    tmp_path: Path, value: Any, shards: int
) -> None:
    """A merged model keeps the entry of the base that it was trained on; its weights are plain."""
    folder = tmp_path / "model"
    write_checkpoint(folder, some_tensors(), {**CONFIG, "quantization_config": value}, shards)
    checkpoint = open_checkpoint(folder)
    assert "quantization_config" not in checkpoint.config
    assert set(checkpoint.tensors) == set(some_tensors())
    (remark,) = checkpoint.remarks
    assert remark.startswith(f"{folder / 'config.json'} has a quantization_config")
    assert not is_artifact(folder)
    write_checkpoint(folder, some_tensors(), CONFIG, shards)
    assert open_checkpoint(folder).remarks == ()


def test_a_model_that_rounds_as_it_computes_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "bitnet"}}
    write_checkpoint(tmp_path, some_tensors(), config)
    open_refused(tmp_path, "already quantized", "bitnet")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "suffix",
    [".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".SCB"],
)
def test_quantized_by_its_tensors(tmp_path: Path, suffix: str, shards: int) -> None:
    name = f"model.layers.0.self_attn.q_proj{suffix}"
    tensors = {**some_tensors(), name: np.ones(4, np.float32)}
    write_checkpoint(tmp_path, tensors, CONFIG, shards)
    open_refused(tmp_path, "already quantized", re.escape(name), "use the original")


def test_quantized_by_integer_tensors(tmp_path: Path) -> None:
    """An index tells by the names; one file alone by the names in its header."""
    name = "model.layers.0.self_attn.q_proj.qweight"
    tensors = {**some_tensors(), name: np.ones((4, 4), np.int32)}
    write_checkpoint(tmp_path / "two", tensors, CONFIG, shards=2)
    open_refused(tmp_path / "two", "already quantized", re.escape(name), "use the original")
    write_checkpoint(tmp_path / "one", tensors, CONFIG)
    open_refused(tmp_path / "one", "already quantized", re.escape(name), "use the original")
    tensors = {**some_tensors(), "model.layers.0.q.weight": np.ones((4, 4), np.int32)}
    write_checkpoint(tmp_path / "other", tensors, CONFIG)
    open_refused(
        tmp_path / "other",
        *("layers.0.q.weight", "I32", "already quantized use the original"),
        file="model.safetensors",
        error=SafetensorsError,
    )


# --- weights in other formats, or none -------------------------------------------------------


@pytest.mark.parametrize("names", [["consolidated.00.pth"], ["model.pt"], ["adapter_model.bin"]])
def test_files_that_are_no_weights_of_a_checkpoint(single: Path, names: list[str]) -> None:
    (single / "model.safetensors").unlink()
    for name in names:
        (single / name).write_bytes(b"\x80\x02}q\x00.")
    message = open_refused(single, r"no model\*\.safetensors", "save_pretrained")
    assert all(name in message for name in names)


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    open_refused(single, r"no model\*\.safetensors", "download")


def test_an_index_whose_files_are_all_missing(sharded: Path) -> None:
    for name in (SHARD_1, SHARD_2, SHARD_3):
        (sharded / name).unlink()
    open_refused(sharded, "lacks 3 of the 3 weight files", SHARD_1, "download")


def test_an_adapter_is_to_be_merged(tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "mistralai/Mistral-7B-v0.1"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    open_refused(tmp_path, "an adapter", "'mistralai/Mistral-7B-v0.1'", "merge_and_unload")


def test_a_folder_of_gguf_files_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    open_refused(tmp_path, "GGUF files", "folder of the checkpoint")


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("hub/models--someone--Tiny-Thing/snapshots/" + "0a" * 20, "Tiny-Thing"),
        ("hub/models--gpt2/snapshots/" + "0a" * 20, "gpt2"),
        ("hub/models--someone--Tiny-Thing/snapshots/mine", "mine"),
        ("models--a--b/elsewhere/" + "0a" * 20, "0a" * 20),
        ("plain", "plain"),
    ],
)
def test_a_snapshot_of_the_hubs_cache_has_its_repositorys_name(
    tmp_path: Path, place: str, name: str
) -> None:
    folder = tmp_path / place
    write_checkpoint(folder, some_tensors(), CONFIG)
    assert open_checkpoint(folder).name == name
    (tmp_path / "link").symlink_to(folder)
    assert open_checkpoint(tmp_path / "link").name == name


def test_weights_without_permission(plain_users_folder: Path) -> None:
    write_checkpoint(plain_users_folder, some_tensors(), CONFIG)
    (plain_users_folder / "model.safetensors").chmod(0)
    open_refused(
        plain_users_folder,
        *("Permission denied", "permissions"),
        file="model.safetensors",
        error=SafetensorsError,
    )


def test_truncated_shard(sharded: Path) -> None:
    os.truncate(sharded / SHARD_2, (sharded / SHARD_2).stat().st_size - 10)
    open_refused(sharded, "truncated: 10 bytes", "download", file=SHARD_2, error=SafetensorsError)


def test_dangling_link_to_a_shard(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    (sharded / SHARD_2).symlink_to("gone")
    open_refused(sharded, "does not exist", "download", file=SHARD_2, error=SafetensorsError)


# --- the index -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        *({}, {"metadata": {}}, {"weight_map": None}, {"weight_map": []}),
        *({"weight_map": "x"}, {"weight_map": {}}),
    ],
)
def test_index_without_weight_map(sharded: Path, index: Any) -> None:
    (sharded / INDEX).write_text(json.dumps(index))
    open_refused(sharded, "no weight_map", "download it again", file=INDEX)


def test_index_that_is_not_json(sharded: Path) -> None:
    (sharded / INDEX).write_text("<html>")
    open_refused(sharded, "not JSON", "download it again", file=INDEX)


@pytest.mark.parametrize(
    "value",
    [
        *("", ".", "..", "/", "\\", "/etc/passwd", "../other/model.safetensors"),
        *("sub/model.safetensors", f"./{SHARD_1}", f"sub/../{SHARD_1}", f"{SHARD_1}/"),
        *("..\\model.safetensors", "sub\\model.safetensors", "C:\\model.safetensors"),
        *("C:model.safetensors", "\\\\host\\share\\x", "a\0b", "a\x1b[2Jb", "x" * 256),
        *(None, 1, True, 1.5, [SHARD_1], {SHARD_1: 1}),
    ],
    ids=repr,
)
def test_index_that_leads_out_of_the_folder(sharded: Path, value: Any) -> None:
    # The files exist, so that nothing but the name keeps them from being read.
    for folder in ("sub", "../other"):
        (sharded / folder).mkdir()
        (sharded / folder / "model.safetensors").write_bytes((sharded / SHARD_1).read_bytes())
    edit_weight_map(sharded, lambda m: m.update({"model.norm.weight": value}))
    open_refused(
        sharded,
        *("'model.norm.weight'", "not the name of a file in its folder", "download it again"),
        file=INDEX,
    )


def test_missing_shards(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    message = open_refused(sharded, "lacks 1 of the 3 weight files", SHARD_2, "download")
    assert SHARD_1 not in message
    (sharded / SHARD_1).unlink()
    open_refused(sharded, "lacks 2 of the 3 weight files", SHARD_1, SHARD_2, "download")


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {f"t{i}": np.ones(1, np.float32) for i in range(9)}
    write_checkpoint(tmp_path, tensors, CONFIG, shards=9)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    message = open_refused(tmp_path, "lacks 9 of the 9", "and 6 more", "download")
    assert re.findall(r"model-(\d+)-of", message) == ["00001", "00002", "00003"]


def test_names_are_cut_where_they_are_shown(sharded: Path) -> None:
    edit_weight_map(sharded, lambda m: m.update({"x" * 100_000: "y" * 250}))
    open_refused(sharded, "lacks 1 of the 4", "y{20}")


@pytest.mark.parametrize("count", [4, 5])
def test_indexed_tensors_that_no_shard_holds(sharded: Path, count: int) -> None:
    edit_weight_map(sharded, lambda m: m.update({f"new.{i}": SHARD_2 for i in range(count)}))
    message = open_refused(
        sharded,
        *(f"{count} of its {6 + count} tensors in files that lack them", "'new.0'", SHARD_2),
        *(f"and {count - 3} more", "different versions", "download"),
        file=INDEX,
    )
    assert "new.3" not in message
    assert SHARD_1 not in message


def test_tensors_that_the_index_does_not_list(sharded: Path) -> None:
    edit_weight_map(sharded, lambda m: m.pop("model.norm.weight"))
    open_refused(
        sharded,
        *("does not list 1 of the tensors", SHARD_3, "'model.norm.weight'"),
        *("different versions", "download"),
        file=INDEX,
    )


def test_tensors_in_another_shard_than_indexed(sharded: Path) -> None:
    edit_weight_map(sharded, lambda m: m.update({"model.norm.weight": SHARD_1}))
    open_refused(
        sharded,
        *("puts tensor 'model.norm.weight' in", f"{SHARD_1}.*but it is in.*{SHARD_3}"),
        *("different versions", "download"),
        file=INDEX,
    )


@pytest.mark.parametrize("with_index", [True, False])
def test_the_same_tensor_in_two_shards(sharded: Path, with_index: bool) -> None:
    tensors: dict[str, Tensor] = {
        "model.layers.1.b.weight": np.ones((3, 4), np.float32),
        "model.norm.weight": np.ones(4, np.float32),
    }
    write_safetensors(sharded / SHARD_2, tensors)
    if not with_index:
        (sharded / INDEX).unlink()
    message = open_refused(
        sharded, f"and {SHARD_2} both hold tensor", "remove", "download", file=SHARD_3
    )
    assert "weight'" in message


def test_all_in_one_next_to_shards_without_index(sharded: Path) -> None:
    write_safetensors(sharded / "model-all.safetensors", some_tensors())
    (sharded / INDEX).unlink()
    open_refused(
        sharded, f"and {SHARD_1} both hold tensor", "remove the one", file="model-all.safetensors"
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_what_automodel_saved_has_the_names_of_the_model_with_its_head(
    shards: int, tmp_path: Path
) -> None:
    whole, inside = tmp_path / "whole", tmp_path / "inside"
    write_checkpoint(whole, some_tensors(), CONFIG, shards=shards)
    bare = {name.removeprefix("model."): tensor for name, tensor in some_tensors().items()}
    write_checkpoint(inside, bare, CONFIG | {"architectures": ["MistralModel"]}, shards=shards)
    expected, found = open_checkpoint(whole), open_checkpoint(inside)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in found.tensors.items():
        assert tensor.name == name
        rows = tensor.n_bytes // tensor.row_bytes
        both = [open_rows(checkpoint)(name, 0, rows).tobytes() for checkpoint in (found, expected)]
        assert both[0] == both[1]


def test_other_names_stay_as_they_are(tmp_path: Path) -> None:
    odd = {"embed_tokens.weight": np.ones((2, 4), np.float32)} | some_tensors()
    write_checkpoint(tmp_path, odd, CONFIG)
    assert open_checkpoint(tmp_path).tensors.keys() == odd.keys()
