"""``quantkit build``: its options, and what it shows."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from tests.building.disks import mount_read_only
from tests.cli.command import quantkit, refusal, sentences
from tests.random_checkpoints import random_checkpoint

TINY_MISTRAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mistral"
BUILD = ("build", "-q", "q4_0", "--no-smoke")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    return random_checkpoint(folder, "mistral", intermediate_size=256, num_hidden_layers=1)


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_quants_and_groups_in_any_case(checkpoint: Path, tmp_path: Path) -> None:
    outcome = quantkit(
        *("build", checkpoint, "--quant", "GGUF-ALL", "-q", "Q4_0", "-q", "q4_k_m", "-o", tmp_path),
        "--no-smoke",
    )
    assert outcome.code == 0
    ladder = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]
    assert names_in(tmp_path) == {*(f"Model-591K-{q}.gguf" for q in ladder), "quantkit.json"}
    shown = [line.split()[1] for line in outcome.out.splitlines() if "│ Model-" in line]
    assert shown == [f"Model-591K-{quant}.gguf" for quant in ladder]  # best first
    assert outcome.out.count("not run") == len(ladder)
    assert outcome.err.startswith(f"Model-591K: 591K parameters, {len(ladder)} quants, ")


def test_the_folder_is_named_after_the_model(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quantkit(*BUILD, checkpoint).code == 0
    assert names_in(tmp_path / "Model-591K-GGUF") == {"Model-591K-Q4_0.gguf", "quantkit.json"}
    assert quantkit(*BUILD, checkpoint, "--name", "Other Name").code == 0
    assert (tmp_path / "Other-Name-GGUF" / "Other-Name-Q4_0.gguf").is_file()


def test_the_name_is_in_the_metadata(checkpoint: Path, tmp_path: Path) -> None:
    assert quantkit(*BUILD, checkpoint, "--name", "Other Name", "-o", tmp_path).code == 0
    facts = json.loads(quantkit("inspect", tmp_path / "Other-Name-Q4_0.gguf", "--json").out)
    assert facts["metadata"]["general.name"] == "Other Name"


def test_tensor_types(checkpoint: Path, tmp_path: Path) -> None:
    wishes = ["--tensor-type", "attn_v=q8_0", "--tensor-type", r"blk\.0\.FFN_.*=Q5_1"]
    assert quantkit(*BUILD, checkpoint, *wishes, "-o", tmp_path).code == 0
    facts = json.loads(quantkit("inspect", tmp_path / "Model-591K-Q4_0.gguf", "--json").out)
    encodings = {row["role"]: row["encoding"] for row in facts["tensors"]}
    assert encodings["attn_v"] == "Q8_0"
    assert {encodings[f"ffn_{part}"] for part in ("gate", "up", "down")} == {"Q5_1"}
    assert encodings["attn_q"] == "Q4_0"


def test_remarks_are_said_and_kept(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1, sliding_window=8)
    said = "attends to the last 8 tokens (sliding_window)"
    build = ("build", folder, "-q", "q4_0", "-o", tmp_path / "out", "--no-smoke")
    plan = quantkit(*build, "--dry-run", "--json")
    assert said in plan.err
    [remark] = json.loads(plan.out)["artifacts"][0]["remarks"]
    outcome = quantkit(*build, "--json")
    assert sentences(outcome.err).count(remark) == 1
    [artifact] = json.loads(outcome.out)["artifacts"].values()
    assert artifact["remarks"] == [remark]
    manifest = json.loads((tmp_path / "out" / "quantkit.json").read_text())
    assert [entry["remarks"] for entry in manifest["artifacts"].values()] == [[remark]]


def test_what_llama_cpp_renders_otherwise_is_said(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)
    template = "{% for m in messages %}{{ m.content | wordwrap(9) }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    build = ("build", folder, "-q", "q4_0", "-o", tmp_path / "out", "--no-smoke", "--json")
    outcome = quantkit(*build)
    assert outcome.code == 0, outcome
    [artifact] = json.loads(outcome.out)["artifacts"].values()
    [remark] = (text for text in artifact["remarks"] if "chat template" in text)
    assert "llama.cpp cannot render the chat template (every conversation)" in remark
    assert "no filter 'wordwrap'" in remark
    assert sentences(outcome.err).count(remark) == 1


def test_no_projector_of_what_has_none(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint of our own families, and a GGUF."""
    out = tmp_path / "out"
    asked = ("-o", out, "--mmproj", "f16")
    why = "--mmproj f16 is for models with a vision or audio part, and {} has none; leave it out."
    assert refusal(quantkit(*BUILD, checkpoint, *asked)) == why.format(checkpoint)
    assert refusal(quantkit(*BUILD, checkpoint, *asked, "--dry-run")) == why.format(checkpoint)
    mixed = quantkit(*BUILD, "-q", "bnb-nf4", checkpoint, *asked)
    assert refusal(mixed) == why.format(checkpoint)
    assert quantkit(*BUILD, checkpoint, "-q", "f16", "-o", out, "--mmproj", "none").code == 0
    gguf = out / "Model-591K-F16.gguf"
    assert refusal(quantkit(*BUILD, gguf, "-o", out / "2", "--mmproj", "f16")) == why.format(gguf)


def test_tokens_that_are_not_the_models_reject_what_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GGUF, and a folder through its GGUF; as if scores were not known, or not written."""
    from quantkit.checkpoint.tokenizer.vocabulary import Vocabulary

    def flat(self: Vocabulary) -> dict[str, Any]:
        scores = [-1000.0] * len(self.tokens)
        return {**written(self), "tokenizer.ggml.scores": scores}

    written = Vocabulary.metadata
    monkeypatch.setattr(Vocabulary, "metadata", flat)
    folder = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    quants = ("-q", "q8_0", "-q", "bnb-nf4")
    outcome = quantkit("build", folder, *quants, "-o", tmp_path / "out", "--json")
    assert outcome.code == 1
    artifacts = json.loads(outcome.out)["artifacts"].values()
    verdicts = [artifact["smoke"]["verdict"] for artifact in artifacts]
    assert len(verdicts) == 2
    for verdict in verdicts:
        assert verdict.startswith("Its tokens are not the model's: ")
        assert re.search(r"\[.*\] for tokenizer\.\w+ and \[.*\] for llama\.cpp \(", verdict)
    assert all(path.name.endswith(".rejected") for path in (tmp_path / "out").iterdir())


def test_the_manifest_says_what_was_compared(tmp_path: Path) -> None:
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    records = []
    for name, more in (("without", {}), ("with", {"chat_template": template})):
        folder = random_checkpoint(tmp_path / name, "mistral", num_hidden_layers=1)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
        outcome = quantkit("build", folder, "-q", "q8_0", "-o", tmp_path / "out" / name, "--json")
        [artifact] = json.loads(outcome.out)["artifacts"].values()
        records.append(artifact["smoke"]["details"]["tokens"])
    assert records[0] == {"tokenizer": "tokenizer.model", "texts": ANY, "deviations": {}}
    assert records[1]["texts"] == records[0]["texts"] + 1
    [file] = (tmp_path / "out" / "with").glob("*.gguf")
    said = quantkit("smoke", file, "--checkpoint", tmp_path / "with").out
    assert f"tokenizer.model in all of {records[1]['texts']:,} texts." in said
    refusal(quantkit("smoke", file, "--checkpoint", tmp_path / "none"))


def test_tokenizers_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    """By a line of the build and in the manifest; what is built follows one of them."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_MISTRAL, folder)
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    fast["model"]["merges"].reverse()
    path.write_text(json.dumps(fast))
    build = ("build", folder, "-q", "q8_0", "-o", tmp_path / "out", "--no-smoke", "--json")
    outcome = quantkit(*build)
    [remark] = [line for line in outcome.err.splitlines() if "contradict each other" in line]
    [artifact] = json.loads(outcome.out)["artifacts"].values()
    assert remark in artifact["remarks"]


def test_the_best_search_is_in_the_manifest(checkpoint: Path, tmp_path: Path) -> None:
    build = ("build", checkpoint, "-q", "q4_k_m", "--no-smoke", "-o", tmp_path)
    assert quantkit(*build, "--search", "best").code == 0
    file = tmp_path / "Model-591K-Q4_K_M.gguf"
    best = file.read_bytes()
    manifest = json.loads((tmp_path / "quantkit.json").read_text())
    assert manifest["artifacts"][file.stem]["kernel"]["search"] == "best"
    # The same name, but not the same file.
    assert str(file) in refusal(quantkit(*build))
    file.unlink()
    assert quantkit(*build).code == 0
    assert file.read_bytes() != best
    assert len(file.read_bytes()) == len(best)
    manifest = json.loads((tmp_path / "quantkit.json").read_text())
    assert manifest["artifacts"][file.stem]["kernel"]["search"] == "ggml"


def test_ggml_has_one_search(checkpoint: Path, tmp_path: Path) -> None:
    wish = ("--kernel", "ggml", "--search", "best", "-o", tmp_path / "out")
    assert "--kernel fast" in refusal(quantkit(*BUILD, checkpoint, *wish))
    assert not (tmp_path / "out").exists()


def test_shards_lie_in_a_folder_and_run(checkpoint: Path, tmp_path: Path) -> None:
    command = ["build", checkpoint, "-q", "q8_0", "-o", tmp_path, "--shard-size", "300kB"]
    outcome = quantkit(*command)
    assert outcome.code == 0
    [entry] = json.loads((tmp_path / "quantkit.json").read_text())["artifacts"].values()
    files = [file["name"] for file in entry["files"]]
    n = len(files)
    assert n > 1
    stem = "Model-591K-Q8_0"
    assert files == [f"{stem}/{stem}-{i + 1:05}-of-{n:05}.gguf" for i in range(n)]
    assert names_in(tmp_path) == {*files, "quantkit.json"}
    assert f"{stem}/ ({n} files)" in outcome.out
    assert "passed" in outcome.out
    assert "sha256 as built" in quantkit("smoke", tmp_path / files[0]).out


def test_a_dry_run_shows_every_tensor_and_file(checkpoint: Path, tmp_path: Path) -> None:
    outcome = quantkit("build", checkpoint, "-q", "q4_k_m", "-o", tmp_path / "out", "--dry-run")
    assert outcome.code == 0
    rows = [line.replace("│", " ").split() for line in outcome.out.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) > 1}
    assert table["blk.0.ffn_down.weight"] == ["256", "x", "256", "Q6_K", f"{256 * 210:,}"]
    assert table["blk.0.attn_norm.weight"] == ["256", "F32", "1,024"]
    assert not (tmp_path / "out").exists()
    planned = int(table["Model-591K-Q4_K_M.gguf"][0].replace(",", ""))
    assert quantkit("build", checkpoint, "-q", "q4_k_m", "-o", tmp_path, "--no-smoke").code == 0
    assert (tmp_path / "Model-591K-Q4_K_M.gguf").stat().st_size == planned


def test_names_that_look_like_markup(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[bold" / "x]"
    outcome = quantkit(*BUILD, checkpoint, "--name", "[red]M", "-o", folder)
    assert outcome.code == 0
    assert "[red]M-Q4_0.gguf" in outcome.out
    assert f"into {folder}" in outcome.err
    assert (folder / "[red]M-Q4_0.gguf").is_file()


def test_usage_errors_are_two_as_well(checkpoint: Path, tmp_path: Path) -> None:
    for wrong in (["--jobs", "0"], ["--no-such-option"], ["--kernel", "abacus"]):
        outcome = quantkit(*BUILD, checkpoint, "-o", tmp_path / "out", *wrong)
        assert outcome.code == 2
        assert wrong[0] in outcome.err
        assert "Traceback" not in outcome.err
    assert quantkit("build", checkpoint).code == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mounted = mount_read_only(out)
    if not mounted:
        out.chmod(0o555)
    try:
        # Without the right to mount, a superuser has only the kernel's own folders.
        folder = out if mounted or not _may_write(out) else Path("/proc/self")
        sentence = refusal(quantkit(*BUILD, checkpoint, "-o", folder))
    finally:
        if mounted:
            subprocess.run(["umount", out], check=True)
    assert str(folder) in sentence
    assert "-o" in sentence


def _may_write(folder: Path) -> bool:
    try:
        (folder / "probe").touch()
    except OSError:
        return False
    (folder / "probe").unlink()
    return True


def test_a_reader_that_went_away_is_no_traceback(checkpoint: Path, tmp_path: Path) -> None:
    """``quantkit build ... | head -0``"""
    with subprocess.Popen(
        [sys.executable, "-m", "quantkit", *BUILD, checkpoint, "-o", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        stderr = process.stderr.read()
    assert "Traceback" not in stderr
    assert (tmp_path / "Model-591K-Q4_0.gguf").is_file()


def test_without_a_terminal_lines_say_how_far_it_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ten seconds, so a build that takes less has none."""
    for seconds, out in ((1e9, "quiet"), (0, "told")):
        monkeypatch.setattr("quantkit.cli.meters._PLAIN_SECONDS", seconds)
        outcome = quantkit("build", checkpoint, "-q", "q8_0", "-o", tmp_path / out, "--no-smoke")
        assert outcome.code == 0, outcome
        told = [line for line in outcome.err.splitlines() if line.endswith(" s left")]
        assert bool(told) == (out == "told")
        for line in told:
            assert re.fullmatch(
                r"(Encoding|Verifying).*: [\d.]+ [kM]?B of [\d.]+ MB, [\d.]+ [kMG]?B/s, \d+ s left",
                line,
            ), line
