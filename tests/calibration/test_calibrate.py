"""Whole calibrations: the file they leave, what they saw, and what a kill leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.calibration import progress
from quantkit.calibration.calibrate import calibrate, is_made_from
from quantkit.calibration.settings import Settings
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.errors import Interrupted, OutputError
from tests.calibration.runs import TINY, calibrated, corpus_of, opened
from tests.random_checkpoints import random_checkpoint


def read_imatrix(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    from gguf import GGUFReader

    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral"])
def test_every_matrix_of_every_layer_is_there(name: str, tmp_path: Path) -> None:
    result = calibrated(TINY / name, tmp_path, chunks=4, context=128)
    imatrix = load_imatrix(result.path)
    _, model = opened(TINY / name)
    wanted = {
        target.name
        for target in model.targets
        if target.layer is not None and len(target.shape) > 1
    }
    assert set(imatrix.entries) == wanted
    assert imatrix.chunk_count == 4
    assert imatrix.datasets == (str(tmp_path / "training.txt"),)
    for target in model.targets:
        if target.name in wanted and target.role != "ffn_gate_inp":
            columns = imatrix.columns_of(target)
            assert columns is not None
            assert (columns > 0).all()
    tensors = read_imatrix(result.path)
    assert tensors["blk.0.attn_q.weight.counts"].tolist() == [512]
    if model.hparams.num_local_experts:
        for layer, routing in result.routing.items():
            counts = tensors[f"blk.{layer}.ffn_down_exps.weight.counts"].ravel()
            assert sum(routing.tokens) == 2 * 512
            extra = [-(-n // 4) for n in routing.borrowed]
            assert counts.tolist() == [t + e for t, e in zip(routing.tokens, extra, strict=True)]
    # Trained on this very text, so a forward pass that were wrong would show.
    assert result.perplexity < 20


def test_sums_are_those_of_the_inputs(tmp_path: Path) -> None:
    """The first layer's, from scratch."""
    folder = random_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1, dtype="F32")
    result = calibrated(folder, tmp_path, chunks=3, context=32)
    checkpoint, _ = opened(folder)
    tokens = corpus_of(checkpoint, tmp_path, 3, 32).tokens
    table = _tensor(checkpoint.tensors["model.embed_tokens.weight"])
    norm = _tensor(checkpoint.tensors["model.layers.0.input_layernorm.weight"])
    x = table[tokens.ravel()].astype(np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm
    sums = read_imatrix(result.path)["blk.0.attn_k.weight.in_sum2"].ravel()
    np.testing.assert_allclose(sums, (x**2).sum(0), rtol=1e-5)


def _tensor(source: Any) -> np.ndarray[Any, Any]:
    with source.file.open("rb") as file:
        file.seek(source.offset)
        return np.frombuffer(file.read(source.n_bytes), np.float32).reshape(source.shape)


def test_starved_experts_borrow_tokens_at_a_lower_weight(tmp_path: Path) -> None:
    folder = random_checkpoint(
        tmp_path / "model", "mixtral", num_hidden_layers=1, num_local_experts=8, seed=3
    )
    (tmp_path / "without").mkdir()
    without = calibrated(folder, tmp_path / "without", chunks=2, context=64, fewest_tokens=0)
    fewest = sorted(without.routing[0].tokens)[4]
    (tmp_path / "with").mkdir()
    lent = calibrated(folder, tmp_path / "with", chunks=2, context=64, fewest_tokens=fewest)
    assert without.routing[0].tokens == lent.routing[0].tokens
    assert without.routing[0].borrowed == (0,) * 8
    assert lent.routing[0].borrowed == tuple(max(0, fewest - n) for n in lent.routing[0].tokens)
    assert any(lent.routing[0].borrowed)
    plain, topped = read_imatrix(without.path), read_imatrix(lent.path)
    for role in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        name = f"blk.0.{role}.weight"
        for expert, extra in enumerate(lent.routing[0].borrowed):
            before, after = (x[f"{name}.in_sum2"][expert] for x in (plain, topped))
            counts = [float(x[f"{name}.counts"][expert, 0]) for x in (plain, topped)]
            assert counts[1] - counts[0] == -(-extra // 4)
            if extra:
                assert (after > before).all()
            else:
                assert (after == before).all()
    # What was borrowed leaves no trace in the activations.
    assert without.perplexity == lent.perplexity


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral"])
def test_on_disk_or_in_memory_the_result_is_the_same(name: str, tmp_path: Path) -> None:
    files = []
    for max_memory in (1, 2**30):
        folder = tmp_path / str(max_memory)
        folder.mkdir()
        result = calibrated(TINY / name, folder, chunks=2, max_memory=max_memory)
        files.append(read_imatrix(result.path))
    assert files[0].keys() == files[1].keys()
    assert all((files[0][name] == files[1][name]).all() for name in files[0])


@pytest.mark.parametrize("max_memory", [1, 2**30])
@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("moment", ["before the record", "after the record"])
def test_killed_in_a_layer_it_resumes_there(
    max_memory: int, layer: int, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    expected = calibrated(TINY / "tiny-mixtral", whole, chunks=2, max_memory=max_memory)
    real = progress.LayerJournal.record
    (part / "training.txt").write_bytes((whole / "training.txt").read_bytes())

    def dying(self: progress.LayerJournal, record: progress.Layer) -> None:
        if moment == "after the record":
            real(self, record)
        if len(self.layers) == layer + (moment == "after the record"):
            raise KeyboardInterrupt
        if moment == "before the record":
            real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(progress.LayerJournal, "record", dying)
        with pytest.raises(Interrupted, match="of 4 layers done"):
            calibrated(TINY / "tiny-mixtral", part, chunks=2, max_memory=max_memory)
    assert not (part / "imatrix.gguf").exists()
    result = calibrated(TINY / "tiny-mixtral", part, chunks=2, max_memory=max_memory)
    assert result.resumed == layer + (moment == "after the record")
    assert result.routing == expected.routing
    assert result.perplexity == expected.perplexity
    ours, theirs = read_imatrix(result.path), read_imatrix(expected.path)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert sorted(path.name for path in part.iterdir()) == ["imatrix.gguf", "training.txt"]


def test_killed_for_good_it_resumes(tmp_path: Path) -> None:
    """A real SIGKILL, in the second layer."""
    code = """
import os, signal, sys
from pathlib import Path
from quantkit.calibration.lockstep import squares
from tests.calibration.runs import calibrated
real = squares.Squares.observe
def dying(self, parameter, *rest):
    if parameter.startswith("model.layers.1.mlp."):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, parameter, *rest)
squares.Squares.observe = dying
calibrated(Path(sys.argv[1]), Path(sys.argv[2]), chunks=2)
"""
    (tmp_path / "part").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", code, TINY / "tiny-mistral", tmp_path / "part"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    resumed = calibrated(TINY / "tiny-mistral", tmp_path / "part", chunks=2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "training.txt").write_bytes(
        (tmp_path / "part" / "training.txt").read_bytes()
    )
    expected = calibrated(TINY / "tiny-mistral", tmp_path / "whole", chunks=2)
    assert resumed.resumed == 1
    ours, theirs = read_imatrix(resumed.path), read_imatrix(expected.path)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_other_text_does_not_resume_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: progress.LayerJournal, record: progress.Layer) -> None:
        real(self, record)
        raise KeyboardInterrupt

    real = progress.LayerJournal.record
    with monkeypatch.context() as patch:
        patch.setattr(progress.LayerJournal, "record", stop)
        with pytest.raises(Interrupted):
            calibrated(TINY / "tiny-mistral", tmp_path, chunks=2)
    assert calibrated(TINY / "tiny-mistral", tmp_path, chunks=3).resumed == 0


def test_a_finished_imatrix_knows_what_it_was_made_from(tmp_path: Path) -> None:
    checkpoint, model = opened(TINY / "tiny-mistral")
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    out = tmp_path / "imatrix.gguf"
    assert not is_made_from(out, checkpoint, corpus, Settings())
    calibrate(checkpoint, model, corpus, out, Settings())
    assert is_made_from(out, checkpoint, corpus, Settings())
    assert not is_made_from(out, checkpoint, corpus, Settings(fewest_tokens=1))
    assert not is_made_from(out, checkpoint, corpus_of(checkpoint, tmp_path, 3, 64), Settings())


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    checkpoint, model = opened(TINY / "tiny-mistral")
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    with pytest.raises(OutputError, match="is a folder"):
        calibrate(checkpoint, model, corpus, tmp_path, Settings())
    with pytest.raises(OutputError, match="-o"):
        calibrate(checkpoint, model, corpus, Path("/proc/imatrix.gguf"), Settings())


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="there is no GPU here")
def test_a_gpu_gives_the_same(tmp_path: Path) -> None:
    files = []
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        folder.mkdir()
        files.append(read_imatrix(calibrated(TINY / "tiny-mixtral", folder, device=device).path))
    for name, values in files[0].items():
        np.testing.assert_allclose(files[1][name], values, rtol=1e-2)
