"""The cache of references has a limit; what is in use stays."""

import os
import time
from pathlib import Path

import pytest

from quantkit.verification import compare


def test_the_oldest_references_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_MOST_CACHED", 250)
    days = {"a": 5, "b": 3, "c": 4, "d": 0}
    for name, age in days.items():
        for ending in ("kld", "json"):
            file = tmp_path / f"{name}.{ending}"
            file.write_bytes(bytes(100))
            # time: files are given the age that they must have
            then = time.time() - age * 24 * 3600
            os.utime(file, (then, then))
    compare._make_room(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"b.kld", "b.json", "d.kld", "d.json"}
    monkeypatch.setattr(compare, "_MOST_CACHED", 50)
    compare._make_room(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"d.kld", "d.json"}
