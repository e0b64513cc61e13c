"""Hostile and unlucky files, each of which was taken, hung, died or ended in a traceback once."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import quantkit, refusal
from tests.fuzz.cases import MODEL, make_gptq
from tests.random_checkpoints import random_checkpoint
from tests.raw_releases import raw_release

BUILD = ("-q", "q8_0", "--no-smoke", "--jobs", "1", "--kernel", "ggml")


def _model(folder: Path, family: str = "mistral") -> Path:
    return random_checkpoint(folder, family, **MODEL)


def _plan(folder: Path) -> str:
    """How planning a build of a checkpoint is refused."""
    sentence = refusal(quantkit("build", folder, "-q", "q8_0", "--dry-run"))
    assert sentence.isprintable()
    assert len(sentence) < 600 - len("Error: ")
    return sentence


# --- writing through links -------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    precious = tmp_path / "outside" / "precious"
    precious.parent.mkdir()
    precious.write_text("precious")
    return precious


@pytest.mark.parametrize(
    "name",
    [".quantkit.json.partial", ".quantkit-journal.partial", "Model-74K-Q8_0.gguf.partial"],
)
@pytest.mark.parametrize("how", [Path.symlink_to, Path.hardlink_to])
def test_unfinished_names_that_are_links_are_not_followed(
    tmp_path: Path, outside: Path, name: str, how: Callable[[Path, Path], None]
) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    out.mkdir()
    how(out / name, outside)
    assert quantkit("build", model, "-o", out, *BUILD).code == 0
    assert outside.read_text() == "precious"
    assert sorted(path.name for path in outside.parent.iterdir()) == ["precious"]
    assert {path.name for path in out.iterdir()} == {"quantkit.json", "Model-74K-Q8_0.gguf"}
    assert not (out / "Model-74K-Q8_0.gguf").is_symlink()


@pytest.mark.parametrize("name", ["quantkit.json", ".quantkit-journal", "Model-74K-Q8_0.gguf"])
@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_final_names_that_are_links_are_refused(
    tmp_path: Path, outside: Path, name: str, target: str
) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(outside.with_name(target))
    assert f"{name} is a link" in refusal(quantkit("build", model, "-o", out, *BUILD))
    assert outside.read_text() == "precious"
    assert sorted(path.name for path in outside.parent.iterdir()) == ["precious"]
    assert [path.name for path in out.iterdir()] == [name]


def test_a_folder_of_shards_that_is_a_link_is_not_followed(tmp_path: Path, outside: Path) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    out.mkdir()
    (out / "Model-74K-F16.partial").symlink_to(outside.parent)
    split = ("-q", "f16", "--shard-size", "100kB", "--no-smoke")
    assert quantkit("build", model, "-o", out, *split).code == 0
    assert [path.name for path in outside.parent.iterdir()] == ["precious"]
    assert not (out / "Model-74K-F16").is_symlink()


# --- manifests and journals ------------------------------------------------------------------


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    changed = change(document)
    path.write_text(json.dumps(document if changed is None else changed))


def test_a_name_that_leads_elsewhere_makes_nothing_finished(tmp_path: Path) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    assert quantkit("build", model, "-o", out, *BUILD).code == 0
    elsewhere = tmp_path / "elsewhere.gguf"
    (out / "Model-74K-Q8_0.gguf").rename(elsewhere)

    def lie(manifest: dict[str, Any]) -> None:
        manifest["artifacts"]["Model-74K-Q8_0"]["files"][0]["name"] = "../elsewhere.gguf"

    _edit(out / "quantkit.json", lie)
    outcome = quantkit("build", model, "-o", out, *BUILD)
    assert outcome.code == 0
    assert "was there already" not in outcome.out
    assert (out / "Model-74K-Q8_0.gguf").read_bytes() == elsewhere.read_bytes()
    _edit(out / "quantkit.json", lie)
    assert "is none of its folder's files" in refusal(quantkit("compare", out))


@pytest.mark.parametrize("entry", [None, [], "x", {"files": 3}, {"files": [{"name": 1}]}])
def test_a_bad_entry_leaves_its_neighbours_alone(tmp_path: Path, entry: Any) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    assert quantkit("build", model, "-o", out, *BUILD).code == 0
    _edit(out / "quantkit.json", lambda manifest: manifest["artifacts"].update(other=entry))
    again = quantkit("build", model, "-o", out, *BUILD, "--json")
    assert again.code == 0
    assert "already" in again.out or '"fresh": false' in again.out or json.loads(again.out)


@pytest.mark.parametrize(
    "lines",
    [
        ['{"artifacts": {"../outside/precious": {}, "/etc/x.partial": {}}}'],
        ['{"artifacts": 3}', '{"0": 3}', '{"x": [[1]]}', '{"9999999999999999999999": [[1]]}'],
        ["[" * 100_000, '{"artifacts": []}'],
        ['{"artifacts": {"a.partial": {}}, "quantkit": "x"}', '{"hashed": 3, "sent": {"a": 1}}'],
    ],
)
def test_a_journal_of_another_form_is_none(tmp_path: Path, outside: Path, lines: list[str]) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    out.mkdir()
    (out / ".quantkit-journal").write_text("\n".join(lines))
    assert quantkit("build", model, "-o", out, *BUILD).code == 0
    assert outside.read_text() == "precious"
    assert not (out / ".quantkit-journal").exists()


# --- absent is not unreadable ----------------------------------------------------------------


def _make_sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


STRANGE: dict[str, Callable[[Path], object]] = {
    "dangling link": lambda path: path.symlink_to("../blobs/pruned"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "sparse giant": lambda path: _make_sparse(path, 20 * 10**9),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "README.md",
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ],
)
def test_what_cannot_be_read_is_not_absent(tmp_path: Path, name: str, kind: str) -> None:
    model = _model(tmp_path / "Model")
    (model / name).unlink(missing_ok=True)
    STRANGE[kind](model / name)
    assert str(model / name) in _plan(model)


@pytest.mark.parametrize("name", ["SHA256SUMS", "quantkit.json"])
@pytest.mark.parametrize("kind", ["dangling link", "folder", "pipe"])
def test_sums_that_cannot_be_read_are_not_absent(tmp_path: Path, name: str, kind: str) -> None:
    model, out = _model(tmp_path / "Model"), tmp_path / "out"
    assert quantkit("build", model, "-o", out, *BUILD).code == 0
    (out / name).unlink(missing_ok=True)
    STRANGE[kind](out / name)
    assert str(out / name) in refusal(quantkit("verify", out))


def test_a_link_to_a_blob_is_a_file(tmp_path: Path) -> None:
    """As the Hub's cache has them."""
    model = _model(tmp_path / "Model")
    (tmp_path / "blobs").mkdir()
    for file in list(model.iterdir()):
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(f"../blobs/{file.name}")
    assert quantkit("build", model, "-q", "q8_0", "--dry-run").code == 0


# --- bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_hidden_layers", n) for n in (10**9, 200_000, 513)),
        *(("num_local_experts", n) for n in (10**9, 513)),
        *((key, 10**12) for key in ("head_dim", "hidden_size", "intermediate_size", "vocab_size")),
        *((key, 2**40) for key in ("max_position_embeddings", "num_attention_heads")),
    ],
)
def test_numbers_of_a_config_have_bounds(tmp_path: Path, key: str, value: int) -> None:
    model = _model(tmp_path / "Model", "mixtral")
    _edit(model / "config.json", lambda config: config.update({key: value}))
    assert key in _plan(model)


def test_layers_and_experts_have_a_bound_together(tmp_path: Path) -> None:
    model = _model(tmp_path / "Model", "mixtral")
    both = {"num_hidden_layers": 500, "num_local_experts": 500}
    _edit(model / "config.json", lambda config: config.update(both))
    assert "500 layers of 500 experts" in _plan(model)


def test_aliases_in_a_card_do_not_grow(tmp_path: Path) -> None:
    model = _model(tmp_path / "Model")
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    (model / "README.md").write_text("\n".join(["---", *lines, "---", ""]))
    assert "uses YAML aliases" in _plan(model)


@pytest.mark.parametrize(
    ("front", "why"),
    [
        ("a: " + "[" * 5000, "not YAML"),
        ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
        ("a: " + "x" * 300_000, "bytes of YAML"),
        ("date: 2021-13-45", "not YAML"),
        ("license: !!python/object/apply:os.system [x]", "not YAML"),
    ],
)
def test_cards_that_are_attacks(tmp_path: Path, front: str, why: str) -> None:
    model = _model(tmp_path / "Model")
    (model / "README.md").write_text(f"---\n{front}\n---\n")
    sentence = _plan(model)
    assert why in sentence
    assert "model card" in sentence


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\\b", ".."])
def test_a_name_in_a_card_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    model = _model(tmp_path / "Model")
    (model / "README.md").write_text(f"---\nname: {json.dumps(name)}\n---\n")
    outcome = quantkit("build", model, "-q", "q8_0", "--dry-run", "--json")
    if outcome.code == 0:  # what is harmless of it
        assert all(c.isprintable() and c not in "/\\" for c in json.loads(outcome.out)["name"])
    else:
        assert "cannot name a file" in refusal(outcome)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_pth_does_not_inflate(tmp_path: Path, method: int) -> None:
    raw = raw_release(_model(tmp_path / "model", "mixtral"), tmp_path / "Model", "pth")
    path = raw / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, bytes(10**8) if name.endswith("data.pkl") else data)
    assert path.stat().st_size < 10**6
    assert "is refused" in _plan(raw)


@pytest.mark.parametrize("name", ["imatrix.gguf", "text"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse giant"])
def test_files_that_never_end_are_not_read(tmp_path: Path, name: str, kind: str) -> None:
    model, file = _model(tmp_path / "Model"), tmp_path / name
    STRANGE[kind](file)
    option = {"imatrix.gguf": ["--imatrix"], "text": ["--imatrix", "auto", "--text"]}[name]
    command = ["build", model, "-q", "q4_k_m", "-o", tmp_path / "out", "--no-smoke"]
    assert str(file) in refusal(quantkit(*command, *option, file))


@pytest.mark.parametrize("size", ["9" * 400, "9" * 400 + "GB", "1" + "0" * 5000])
def test_sizes_of_hundreds_of_digits(size: str) -> None:
    sentence = refusal(quantkit("fit", "mixtral-8x7b", "--ram", size, "--gpu", "8GB"))
    assert len(sentence) < 200


# --- other libraries -------------------------------------------------------------------------


def test_a_tokenizer_that_panics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.fuzz.cases import write_bpe

    model = random_checkpoint(tmp_path / "Model", "mistral", **MODEL, vocab_size=300)
    (model / "tokenizer.model").unlink()
    write_bpe(model)
    assert quantkit("build", model, "-q", "q8_0", "--dry-run").code == 0

    def panic(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["continuing_subword_prefix"] = "\u00e9\u00e9\u00e9"

    _edit(model / "tokenizer.json", panic)
    capfd.readouterr()
    assert "tokenizer" in _plan(model)
    assert capfd.readouterr().err == ""


# --- quantized folders -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"group_size": 0},
        {"group_size": -2},
        {"group_size": "x"},
        {"bits": 4.0},
        {"bits": "4"},
        {"bits": None},
        {"bits": 5},
    ],
)
def test_gptq_settings_that_make_no_sense(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_gptq(tmp_path / "Model")
    _edit(folder / "config.json", lambda config: config["quantization_config"].update(change))
    assert "build or copy it again" in refusal(quantkit("export", folder, "-o", tmp_path / "out"))


@pytest.mark.parametrize("group", [-1, 2, 10**6])
def test_gptq_groups_that_are_none(tmp_path: Path, group: int) -> None:
    folder = make_gptq(tmp_path / "Model")
    [file] = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name.endswith("g_idx"))
    at = 8 + length + header[name]["data_offsets"][0]
    content[at : at + 4] = np.int32(group).tobytes()
    file.write_bytes(content)
    sentence = refusal(quantkit("export", folder, "-o", tmp_path / "out", "--no-smoke"))
    assert "names groups outside its" in sentence


# --- what is printed -------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x" * 10**6, "a\nb", "\x1b[31m\x07", "[/bold]", "\u202eb"])
def test_what_a_file_says_is_one_printable_line(tmp_path: Path, text: str) -> None:
    model = _model(tmp_path / "Model")
    _edit(model / "config.json", lambda config: config.update(architectures=[text]))
    _plan(model)


def test_markup_in_keys_is_text(tmp_path: Path) -> None:
    model = _model(tmp_path / "Model")
    strange = {"[/bold]": 1, "\x1b[2J": 2, "[link=x]": "[/]"}
    _edit(model / "config.json", lambda config: config.update(strange))
    outcome = quantkit("inspect", model)
    assert outcome.code == 0, outcome
    assert "[/bold]" in outcome.out
    assert outcome.out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": ' * 100_000, '{"a": ' + "9" * 400 + "}", '{"a": "\\ud800"}', "\ufeff{"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_json_that_is_an_attack(tmp_path: Path, name: str, text: str) -> None:
    model = _model(tmp_path / "Model")
    (model / name).write_text(text)
    assert name in _plan(model)
