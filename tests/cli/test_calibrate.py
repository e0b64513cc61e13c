"""``quantkit calibrate`` and ``quantkit build --imatrix auto`` as people call them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.cli.calibrate import Device
from quantkit.core.packages import install
from tests.calibration.runs import TINY, text_file
from tests.cli.command import quantkit, refusal
from tests.random_checkpoints import random_checkpoint

SMALL = ("--chunks", 2, "--context", 64)


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    out, picture = tmp_path / "i.gguf", tmp_path / "routing.png"
    done = quantkit(
        "calibrate", TINY / "tiny-mixtral", "-o", out, "-t", text_file(tmp_path), *SMALL,
        "--plot", picture,
    )  # fmt: skip
    assert done.code == 0, done
    assert "Tokens per expert" in done.out
    assert "starved" in done.out
    assert re.search(r"2 chunks of 64 tokens, perplexity \d", done.out)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert load_imatrix(out).chunk_count == 2


def test_json(tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    text = text_file(tmp_path)
    done = quantkit("calibrate", TINY / "tiny-mixtral", "-o", out, "-t", text, *SMALL, "--json")
    assert done.code == 0, done
    document = json.loads(done.out)
    assert document["file"] == str(out)
    assert document["text"] == [str(text)]
    assert [row["layer"] for row in document["routing"]] == [0, 1, 2, 3]
    for row in document["routing"]:
        assert sum(row["tokens"]) == 2 * 2 * 64
        assert row["imbalance"] == max(row["tokens"]) / 32


def test_it_says_what_it_runs_over(tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    done = quantkit("calibrate", TINY / "tiny-mistral", "-o", out, *SMALL)
    assert "built-in text" in done.err
    wish = ("-o", out, *SMALL, "--random-tokens", "--overwrite")
    done = quantkit("calibrate", TINY / "tiny-mistral", *wish)
    assert done.code == 0
    assert "random tokens" in done.err
    assert load_imatrix(out).datasets == ("random tokens",)


def test_it_says_where_text_shows_little_of_the_vocabulary(tmp_path: Path) -> None:
    text, chats = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("the " * 4000)
    chats.write_text('[{"role": "user", "content": "the the"}]\n' * 20)
    wish = ("--text", f"{text}:2", "--chat", chats, "-o", tmp_path / "i.gguf", *SMALL)
    done = quantkit("calibrate", TINY / "tiny-mistral", *wish)
    assert "of the model's 1,024 tokens (" in done.err
    assert load_imatrix(tmp_path / "i.gguf").datasets == (
        f"{text} (weight 2)",
        f"{chats} (conversations)",
    )


def test_an_imatrix_made_on_the_way(tmp_path: Path) -> None:
    out, text = tmp_path / "out", text_file(tmp_path)
    wish = (
        "build", TINY / "tiny-mistral", "-q", "q4_k_m", "-o", out, "--no-smoke", "--kernel", "ggml",
        "--imatrix", "auto", "-t", text, *SMALL,
    )  # fmt: skip
    assert quantkit(*wish).code == 0
    manifest = json.loads((out / "quantkit.json").read_text())
    (entry,) = manifest["artifacts"].values()
    assert entry["imatrix"]["file"] == "imatrix.gguf"
    made = (out / "imatrix.gguf").stat().st_mtime_ns
    again = quantkit(*wish)
    assert again.code == 0
    assert (out / "imatrix.gguf").stat().st_mtime_ns == made


def test_a_dry_run_needs_no_numbers(tmp_path: Path) -> None:
    """What it plans is what is built, and nothing is run or written."""
    out, text = tmp_path / "out", text_file(tmp_path)
    wish = (
        "build", TINY / "tiny-mistral", "-q", "q4_k_s", "-o", out, "--no-smoke", "--kernel", "ggml",
        "--imatrix", "auto", "-t", text, *SMALL, "--json",
    )  # fmt: skip
    planned = json.loads(quantkit(*wish, "--dry-run").out)
    assert not out.exists()
    assert quantkit(*wish).code == 0
    (size,) = [one["bytes"] for one in planned["artifacts"]]
    assert size == (out / "Tiny-Mistral-2.9M-Q4_K_S.gguf").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--context", 513], "--context 513 is more than the 512"),
        (["--text", "absent.txt"], r"absent\.txt does not exist"),
        (["--text", "absent.txt", "--random-tokens"], "leave out --text"),
        (["--max-memory", "12XB"], "'12XB' is not a size"),
        (["--text", "short.txt"], r"short\.txt has .* tokens.* at least 1024"),
        (["--text", "empty.txt"], r"empty\.txt is empty"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    arguments: list[str], names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short")
    Path("empty.txt").touch()
    sentence = refusal(quantkit("calibrate", TINY / "tiny-mistral", *arguments))
    assert re.search(names, sentence), sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "short.txt"]


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = random_checkpoint(
        tmp_path / "model", "mistral", quantization_config={"quant_method": "bitnet"}
    )
    assert "already quantized" in refusal(quantkit("calibrate", folder, "-o", tmp_path / "i.gguf"))


def test_no_gpu_is_said(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        assert Device.CUDA.value == "cuda"
        return
    out = tmp_path / "i.gguf"
    wish = ("calibrate", TINY / "tiny-mistral", "-o", out, "--device", "cuda", *SMALL)
    sentence = refusal(quantkit(*wish))
    assert "--device cuda finds no GPU" in sentence


def test_without_torch_the_extra_is_named(tmp_path: Path) -> None:
    """In a Python that finds no torch, and whatever needs none still works there."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name)
sys.meta_path.insert(0, Blocked())
import json
from tests.cli.command import quantkit
print(json.dumps([(done.code or 0, done.err) for done in (
    quantkit(*arguments) for arguments in json.loads(sys.argv[1])
)]))
"""
    out = tmp_path / "i.gguf"
    wishes = (
        ("calibrate", TINY / "tiny-mistral", "-o", out),
        ("build", TINY / "tiny-mistral", "-q", "q4_0", "--imatrix", "auto"),
        ("build", TINY / "tiny-mistral", "-q", "gptq-int4"),
        ("inspect", TINY / "tiny-mistral"),
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(wishes, default=str)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    *refused, works = json.loads(done.stdout)
    for (status, err), extra in zip(refused, ("calibrate", "calibrate", "gptq"), strict=True):
        assert status == 2, err
        assert install(extra).endswith(" torch transformers")
        assert f"{install(extra)}." in err.replace("\n", " ")
    assert works[0] == 0
