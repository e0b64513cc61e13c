"""Where the sha256 of the source is known, only what is needed is read of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.building import source
from quantkit.building.hub import HubReader
from quantkit.building.source import Reading, SourceReader, WeightReader, stamps_of
from quantkit.building.units import Unit, cut_units
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.core.errors import CheckpointError
from tests.hub_server import HubServer, client_of, serve
from tests.random_checkpoints import random_checkpoint

NORM = "model.norm.weight"
SUM = "ab" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("known") / "model"
    return random_checkpoint(place, "mistral", num_hidden_layers=1, intermediate_size=256)


def norm_units(checkpoint: Checkpoint) -> list[Unit]:
    targets = [
        t for t in open_model(checkpoint).targets if t.blocks and t.name == "output_norm.weight"
    ]
    return cut_units(targets, checkpoint.tensors)


def read_all(reader: WeightReader, units: list[Unit]) -> list[bytes]:
    try:
        return [raw.tobytes() for _, raw in reader.read(units)]
    finally:
        reader.close()


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    real: Callable[..., Any] = source.read_exactly

    def counting(fd: int, n_bytes: int, offset: int, path: Path) -> Any:
        found.append(n_bytes)
        return real(fd, n_bytes, offset, path)

    monkeypatch.setattr(source, "read_exactly", counting)
    return found


@pytest.mark.parametrize("known", [SUM, None])
def test_a_folder(folder: Path, n_read: list[int], known: str | None) -> None:
    checkpoint = open_checkpoint(folder)
    units = norm_units(checkpoint)
    [file] = checkpoint.files
    whole = SourceReader(Reading(stamps_of(checkpoint)))
    [expected] = read_all(whole, units)
    assert sum(n_read) == file.stat().st_size
    n_read.clear()

    reader = SourceReader(Reading(stamps_of(checkpoint), known={file.name: known}))
    assert read_all(reader, units) == [expected]
    assert n_read == [checkpoint.tensors[NORM].n_bytes]
    assert reader.sha256 == ({file: known} if known else {})


def test_a_folder_whose_file_is_another_now(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    [file] = checkpoint.files
    size, modified = stamps_of(checkpoint)[file]
    reading = Reading({file: (size, modified - 1)}, known={file.name: SUM})
    with pytest.raises(CheckpointError, match="changed while it was read"):
        read_all(SourceReader(reading), norm_units(checkpoint))


def test_the_hub(folder: Path, tmp_path: Path) -> None:
    with serve(HubServer(folder)) as server, client_of(server, tmp_path / "cache"):
        checkpoint = open_hub_checkpoint("someone/Model", None)
        assert checkpoint.repo is not None
        [file] = checkpoint.files
        sent = server.bytes_sent
        reading = Reading(stamps_of(checkpoint), known={file.name: SUM}, ahead=2**20)
        reader = HubReader(checkpoint.repo, reading)
        [raw] = read_all(reader, norm_units(checkpoint))
        assert server.bytes_sent - sent == checkpoint.tensors[NORM].n_bytes == len(raw)
        assert reader.sha256 == {file: SUM}
    tensor = open_checkpoint(folder).tensors[NORM]
    stored = np.fromfile(tensor.file, np.uint8, tensor.n_bytes, offset=tensor.offset)
    assert raw == stored.tobytes()
