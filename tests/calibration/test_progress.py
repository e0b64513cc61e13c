"""What an interrupted run left is what it wrote, or serves nothing and is said to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.calibration.progress import Layer, LayerJournal
from quantkit.calibration.routing import Routing
from quantkit.calibration.statistics import Sums
from quantkit.calibration.sums import read_sums, write_sums
from quantkit.core.errors import OutputError

IDENTITY: dict[str, Any] = {"config": {"rope_theta": 1e6}, "tokens": "abc"}
LAYER = Layer(7, {"layer-0.safetensors": 5}, Routing((3, 4), (0, 1), (0.5, 0.25)))


def journal(folder: Path) -> LayerJournal:
    return LayerJournal(folder, IDENTITY, 2)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    begun = journal(tmp_path)
    begun.record(LAYER)
    begun.record(Layer(8))
    return tmp_path / "journal.json"


def test_it_gives_back_what_went_in(written: Path) -> None:
    found = journal(written.parent)
    assert found.layers == [LAYER, Layer(8)]
    assert not found.damaged
    other = LayerJournal(written.parent, {"tokens": "other"}, 2)
    assert (other.layers, other.lost, other.damaged) == ([], 2, False)


def _fewer(document: dict[str, Any]) -> None:
    del document["layers"][1]


def _other_gates(document: dict[str, Any]) -> None:
    document["layers"][0]["routing"]["squares"][0] = 0.75


def _no_number(document: dict[str, Any]) -> None:
    document["layers"][0]["states"] = "7"


def _unknown(document: dict[str, Any]) -> None:
    document["more"] = 1


def _without(document: dict[str, Any]) -> None:
    del document["identity"]


@pytest.mark.parametrize("change", [_fewer, _other_gates, _no_number, _unknown, _without])
def test_a_journal_that_was_changed_serves_nothing(
    written: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(written.read_text())
    change(document)
    written.write_text(json.dumps(document))
    found = journal(written.parent)
    assert (found.layers, found.damaged) == ([], True)
    found.start(lambda _: None)
    assert not list(written.parent.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 1000, '{"layers": []}'])
def test_what_is_no_journal_serves_nothing(written: Path, text: str) -> None:
    written.write_text(text)
    assert journal(written.parent).damaged


def test_more_layers_than_the_model_has_are_none_of_its(written: Path) -> None:
    assert LayerJournal(written.parent, IDENTITY, 1).damaged


def test_sums_are_those_that_were_written(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "layer-0.safetensors"
    sums = {"attn_q": Sums(np.ones((1, 8), np.float32), np.full(1, 3, np.float32))}
    crc = write_sums(path, sums)
    found = read_sums(path, crc)["attn_q"]
    assert (found.squares == sums["attn_q"].squares).all()
    assert (found.counts == sums["attn_q"].counts).all()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for wrong in (crc, None):
        with pytest.raises(OutputError, match="is missing or damaged; delete"):
            read_sums(path, wrong)
