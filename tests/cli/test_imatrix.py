"""An importance matrix must be of the model: one of another is refused, and gaps are said."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.calibration.runs import TINY, opened
from tests.cli.command import quantkit, refusal, sentences
from tests.imatrix_writer import legacy_imatrix

EXPERTS = re.compile(r"blk\.\d\.ffn_(gate|up|down)_exps\.weight")


def write_matrix(path: Path, model: str, keep: Callable[[str], bool] = lambda _: True) -> Path:
    """What llama-imatrix would write of a tiny checkpoint, or a part of it."""
    _, described = opened(TINY / model)
    entries = {
        target.name: (np.ones(int(np.prod(target.shape[:-2])) * target.columns), 1)
        for target in described.targets
        if target.is_linear and keep(target.name)
    }
    path.write_bytes(legacy_imatrix(entries))
    return path


def build(out: Path, model: str, matrix: Path, *options: str) -> tuple[object, ...]:
    return (
        "build", TINY / model, "-o", out, "--imatrix", matrix, "--no-smoke", "--kernel", "ggml",
        *(options or ("-q", "q4_k_m")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "other"), [("tiny-mistral", "tiny-mixtral"), ("tiny-mixtral", "tiny-mistral")]
)
def test_one_of_another_model_is_refused(model: str, other: str, tmp_path: Path) -> None:
    """The matrices of attention would fit, those of the feed-forward parts do not."""
    matrix = write_matrix(tmp_path / "imatrix.dat", other)
    sentence = refusal(quantkit(*build(tmp_path / "out", model, matrix)))
    assert str(matrix) in sentence
    assert "made for another model" in sentence
    of = {"tiny-mistral": r"blk\.0-3\.ffn_gate\.weight", "tiny-mixtral": r"blk\.0-3\.ffn_gate_exps"}
    assert re.search(f"entries for .*{of[other]}", sentence), sentence
    assert re.search(f"none for .*{of[model]}", sentence), sentence
    assert not (tmp_path / "out").exists()
    fitted = refusal(quantkit("fit", TINY / model, "--ram", "8GB", "--imatrix", matrix))
    assert "made for another model" in fitted


def test_one_without_any_entry_for_the_model_is_refused(tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.dat"
    matrix.write_bytes(legacy_imatrix({"output.weight": (np.ones(256), 1)}))
    sentence = refusal(quantkit(*build(tmp_path / "out", "tiny-mistral", matrix)))
    assert "made for another model" in sentence


def test_a_deeper_model_is_another(tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.dat"
    _, described = opened(TINY / "tiny-mistral")
    names = [target for target in described.targets if target.is_linear]
    entries = {target.name: (np.ones(target.columns), 1) for target in names}
    entries |= {t.name.replace("blk.3", "blk.4"): entries[t.name] for t in names if t.layer == 3}
    matrix.write_bytes(legacy_imatrix(entries))
    sentence = refusal(quantkit(*build(tmp_path / "out", "tiny-mistral", matrix)))
    assert "blk.4.attn_q.weight, " in sentence


def test_what_is_missing_is_said_and_recorded(tmp_path: Path) -> None:
    """As llama-imatrix left out experts that saw too little; llama-quantize names each of them."""
    matrix = write_matrix(tmp_path / "m.dat", "tiny-mixtral", lambda name: not EXPERTS.match(name))
    out = tmp_path / "out"
    done = quantkit(*build(out, "tiny-mixtral", matrix, "-q", "q4_k_m", "-q", "f16", "-q", "q8_0"))
    assert done.code == 0, done
    lines = [line for line in sentences(done.err) if "no entry" in line]
    assert len(lines) == 1
    assert "m.dat has no entry for 12 tensors, quantized without importance: " in lines[0]
    assert len(set(EXPERTS.findall(lines[0]))) == 3
    assert len(list(EXPERTS.finditer(lines[0]))) == 12
    artifacts = json.loads((out / "quantkit.json").read_text())["artifacts"]
    for name, entry in artifacts.items():
        assert entry["remarks"] == ([] if name.endswith("F16") else lines), name


def test_a_whole_matrix_needs_no_remark(tmp_path: Path) -> None:
    """llama-imatrix sees embeddings and output only when it is asked to."""
    matrix = write_matrix(tmp_path / "m.dat", "tiny-mistral")
    done = quantkit(*build(tmp_path / "out", "tiny-mistral", matrix))
    assert done.code == 0, done
    assert "no entry" not in done.err
