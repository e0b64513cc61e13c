"""Running a folder takes disk beside it: it is counted before, and nothing of it is left behind."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from quantkit.building.artifact import Check
from quantkit.building.engine import build
from quantkit.building.output import PartialArtifact, trial_of
from quantkit.building.work import prepare, prepare_export
from quantkit.core.errors import NoSpaceError
from quantkit.planning.quants import find_quants
from tests.random_checkpoints import random_checkpoint

_Usage = namedtuple("_Usage", ["total", "used", "free"])


def _accept(_path: Path) -> Check:
    return Check(ok=True, verdict="passed", record={})


def test_the_trial_of_a_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    work = prepare(model, find_quants(["bnb-nf4"]))
    free = work.n_bytes + 2**21
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: _Usage(2**40, 0, free))
    with pytest.raises(NoSpaceError, match="the build needs"):
        build(work, tmp_path / "out", jobs=1, max_memory=2**30, check=_accept)
    (made,) = build(work, tmp_path / "out", jobs=1, max_memory=2**30)
    monkeypatch.undo()
    exported = prepare_export(made.path, find_quants(["q8_0"]))
    assert exported.n_bytes <= work.layouts[0].trial_bytes


def test_what_a_killed_trial_left_is_removed(tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    work = prepare(model, find_quants(["bnb-nf4"]))
    left = trial_of(PartialArtifact(tmp_path / "out", work.layouts[0]).partial)
    left.mkdir(parents=True)
    (left / "a.gguf.partial").write_bytes(bytes(10))
    build(work, tmp_path / "out", jobs=1, max_memory=2**30, check=_accept)
    assert not left.exists()
