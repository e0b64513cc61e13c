"""Whatever is wrong with the input: one sentence that names it, exit code 2, and no output."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import quantkit, refusal
from tests.random_checkpoints import (
    config_of,
    random_checkpoint,
    random_tensors,
    write_tokenizer,
)
from tests.safetensors_writer import to_bf16, write_checkpoint

DOWN = "model.layers.1.mlp.down_proj.weight"


def _edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def _edit_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the header of the first shard; ``change`` returns the new one, or bytes."""
    path = min(folder.glob("*.safetensors"))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change(json.loads(content[8 : 8 + length]))
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def _edit_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors: dict[str, Any] = dict(random_tensors(config_of("mistral")))
    change(tensors)
    for file in folder.glob("model*"):
        file.unlink()
    write_checkpoint(folder, tensors, config_of("mistral"), shards=2)


def _overlap(header: dict[str, Any]) -> dict[str, Any]:
    header[list(header)[-1]]["data_offsets"] = header[list(header)[-2]]["data_offsets"]
    return header


def _out_of_range(header: dict[str, Any]) -> dict[str, Any]:
    begin, end = header[list(header)[-1]]["data_offsets"]
    header[list(header)[-1]]["data_offsets"] = [begin + 10**9, end + 10**9]
    return header


def _huge_header(folder: Path) -> None:
    path = min(folder.glob("*.safetensors"))
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


def _truncate(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1000])


def _eight_bit(tensors: dict[str, Any]) -> None:
    tensors[DOWN] = ("F8_E4M3", (256, 512), bytes(256 * 512))


def _unigram(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    tokenizer = {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


# What is done to a sound two-shard checkpoint, and what the sentence must name.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "unknown architecture": (
        lambda f: _edit_config(f, architectures=["NoSuchForCausalLM"]),
        r"NoSuchForCausalLM.*neither quantkit nor llama\.cpp.*knows",
    ),
    "another architecture": (
        lambda f: _edit_config(f, architectures=["FalconForCausalLM"]),
        r"converter cannot describe.*mlp\.gate_proj\.weight",
    ),
    "no architecture": (lambda f: _edit_config(f, architectures=None), "architectures"),
    "negative layers": (lambda f: _edit_config(f, num_hidden_layers=-1), "num_hidden_layers = -1"),
    "a string for a number": (lambda f: _edit_config(f, hidden_size="256"), "hidden_size = '256'"),
    "heads that do not divide": (lambda f: _edit_config(f, num_key_value_heads=3), "do not divide"),
    "quantized": (
        lambda f: _edit_config(f, quantization_config={"quant_method": "bitnet"}),
        "already quantized.*bitnet.*original",
    ),
    "missing shard": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "lacks 1 of the 2 .*model-00002-of-00002",
    ),
    "truncated shard": (_truncate, r"model-00002-of-00002\.safetensors.*1,?000 bytes.*again"),
    "huge header": (_huge_header, r"model-00001-of-00002\.safetensors.*header"),
    "header no JSON": (lambda f: _edit_header(f, lambda _: b"{nonsense"), "model-00001.*JSON"),
    "overlapping tensors": (lambda f: _edit_header(f, _overlap), "model-00001"),
    "tensor out of range": (lambda f: _edit_header(f, _out_of_range), "model-00001"),
    "index outside the folder": (
        lambda f: _edit_index(f, lambda m: m.update({DOWN: "../elsewhere.safetensors"})),
        r"index\.json.*\.\./elsewhere\.safetensors",
    ),
    "index of other files": (
        lambda f: _edit_index(f, lambda m: m.pop(DOWN)),
        "does not list.*down",
    ),
    "missing tensor": (lambda f: _rewrite(f, lambda t: t.pop(DOWN)), f"lacks {DOWN}"),
    "extra tensor": (
        lambda f: _rewrite(f, lambda t: t.update({"model.extra.weight": to_bf16(np.ones((2, 2)))})),
        r"holds model\.extra\.weight",
    ),
    "misshaped tensor": (
        lambda f: _rewrite(f, lambda t: t.update({DOWN: to_bf16(np.ones((256, 256)))})),
        f"{DOWN}.*256 x 256.*256 x 512",
    ),
    "unsupported dtype": (lambda f: _rewrite(f, _eight_bit), f"{DOWN}.*F8_E4M3"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), r"tokenizer\.model"),
    "tokenizer of unknown kind": (_unigram, "Unigram"),
    "tokenizer damaged": (lambda f: (f / "tokenizer.model").write_bytes(b"x"), r"tokenizer\.model"),
    "broken model card": (
        lambda f: (f / "README.md").write_text("---\ntags: [a\n---\n"),
        "model card",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused(case: str, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral", shards=2)
    damage, names = BROKEN[case]
    damage(folder)
    out = tmp_path / "out"
    sentence = refusal(quantkit("build", folder, "-q", "q4_k_m", "-o", out))
    assert re.search(names, sentence, re.DOTALL), sentence
    assert not out.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, dtype: str, value: float) -> None:
    config = config_of("mistral")
    tensors: dict[str, Any] = dict(random_tensors(config, "F32"))
    tensors[DOWN][17, 300] = value
    if dtype == "BF16":
        tensors = {name: to_bf16(tensor) for name, tensor in tensors.items()}
    elif dtype == "F16":
        tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    write_checkpoint(tmp_path / "model", tensors, config, shards=2)
    write_tokenizer(tmp_path / "model")
    out = tmp_path / "out"
    sentence = refusal(quantkit("build", tmp_path / "model", "-q", "q8_0", "-o", out))
    assert DOWN in sentence
    assert "row 17" in sentence
    assert "column 300" in sentence
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("value", [1e10, -1e18, 3e38])
@pytest.mark.parametrize("quant", ["q4_0", "q3_k_m", "iq4_xs", "iq3_s"])
def test_weights_too_large_for_their_encoding_are_named(
    tmp_path: Path, quant: str, value: float
) -> None:
    """Left to themselves, some of ggml's kernels abort the process here, and others write zeros."""
    config = config_of("mistral", num_hidden_layers=1, tie_word_embeddings=True)
    tensors: dict[str, Any] = dict(random_tensors(config, "F32"))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    write_checkpoint(tmp_path / "model", tensors, config)
    write_tokenizer(tmp_path / "model")
    out = tmp_path / "out"
    wish = ("build", tmp_path / "model", "-o", out, "--no-smoke", "-q")
    sentence = refusal(quantkit(*wish, quant))
    assert f"{name} in {tmp_path / 'model' / 'model.safetensors'} has weights" in sentence
    assert "choose f32 or bf16" in sentence
    assert list(out.iterdir()) == []
    assert quantkit(*wish, "bf16").code == 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-q", "q4km"], r"no quant 'q4km'; did you mean q4_k_m\?"),
        (["-q", "zzzzzzzz"], "quantkit quants"),
        (["-q", "iq2_xs"], "iq2_xs needs an importance matrix.*--imatrix"),
        (["-q", "Q2_K_S"], "q2_k_s needs an importance matrix"),
        (["-q", "q8_0", "--shard-size", "12XB"], "'12XB' is not a size"),
        (["-q", "q8_0", "--shard-size", "1kB"], "--shard-size is smaller than .*at least"),
        (["-q", "q8_0", "--max-memory", "1MiB"], "--max-memory .* at least"),
        (["-q", "q8_0", "--tensor-type", "attn_v"], "PATTERN=TYPE"),
        (["-q", "q8_0", "--tensor-type", "attn_v=q9_0"], "PATTERN=TYPE"),
        (["-q", "q8_0", "--tensor-type", "(=q6_k"], "regular expression"),
        (["-q", "q8_0", "--tensor-type", "nothing_like_it=q6_k"], "matches no tensor"),
        (["-q", "q8_0", "--imatrix", "absent.gguf"], r"absent\.gguf does not exist"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    arguments: list[str], names: str, tmp_path: Path
) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    out = tmp_path / "out"
    sentence = refusal(quantkit("build", folder, "-o", out, *arguments))
    assert re.search(names, sentence), sentence
    assert not list(out.glob("*"))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert "is not a sound GGUF file" in refusal(quantkit("build", file, "-q", "q8_0"))
    assert "does not exist" in refusal(quantkit("build", tmp_path / "absent", "-q", "q8_0"))


@pytest.mark.parametrize("out", ["file", "file/inside", "/proc/quantkit"])
def test_an_output_folder_that_cannot_be_written_is_refused(out: str, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    (tmp_path / "file").touch()
    sentence = refusal(quantkit("build", folder, "-q", "q8_0", "-o", tmp_path / out))
    assert str(tmp_path / out) in sentence
    assert "-o" in sentence


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_an_lfs_pointer_of_a_tokenizer_is_told(tmp_path: Path, name: str) -> None:
    """Of a clone whose weights alone were pulled."""
    folder = random_checkpoint(tmp_path / "model", "mistral")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 493443\n"
    (folder / name).write_text(pointer)
    sentence = refusal(quantkit("build", folder, "-q", "q8_0", "-o", tmp_path / "out"))
    assert f"{name} is a Git LFS pointer" in sentence
    assert "git lfs pull" in sentence
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_too_long_for_a_file_is_refused_before_anything(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / ("x" * 240), "mistral")
    out = tmp_path / "out"
    command = ("build", folder, "-q", "q8_0", "--no-smoke", "-o", out)
    assert "give a shorter one with --name" in refusal(quantkit(*command))
    assert not out.exists()
    assert quantkit(*command, "--name", "Short").code in (0, None)


def test_an_address_as_a_browser_shows_it_is_a_hub_id() -> None:
    from quantkit.checkpoint.names import HubName, parse_hub_name

    model = "mistralai/Mistral-7B-v0.1"
    for address, revision in (
        (f"https://huggingface.co/{model}", None),
        (f"https://huggingface.co/{model}/", None),
        (f"https://huggingface.co/{model}/tree/main", None),
        (f"http://www.huggingface.co/{model}/tree/refs%2Fpr%2F1?x=y", "refs/pr/1"),
        (f"hf://{model}", None),
        (f"https://hf.co/{model}#files", None),
        (model, None),
        (f"{model}@v2", "v2"),
    ):
        assert parse_hub_name(address) == HubName(model, revision), address
    assert parse_hub_name("https://example.org/a/b") is None
