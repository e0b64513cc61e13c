"""Which artifacts of a folder are published."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.errors import PublishError
from quantkit.publishing.layout import find_artifacts

NAME, REPO = "Model-4.25bpw", "someone/Model-GGUF"


def entry(name: str, quant: str, **more: Any) -> dict[str, Any]:
    return {
        "quant": quant,
        "bits_per_weight": 4.2512,
        "parameters": 5,
        "plan_sha256": "0" * 64,
        "files": [{"name": f"{name}.gguf", "bytes": 1, "sha256": "0" * 64}],
        "source": {"weights": []},
        "kernel": {"name": "fast", "version": "1"},
        "quantkit": "0",
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipe = {"version": 1, "arch": "a", "base": "q4_k_m", "shapes": "0" * 64, "types": {}}
    artifacts = {
        NAME: entry(NAME, "4.25bpw", recipe=recipe),
        "Model-Q4_K_M": entry("Model-Q4_K_M", "q4_k_m"),
    }
    manifest = {"version": 1, "artifacts": artifacts}
    (tmp_path / "quantkit.json").write_text(json.dumps(manifest))
    for name in artifacts:
        (tmp_path / f"{name}.gguf").write_bytes(b"x")
    return tmp_path


def names(folder: Path, *quants: str) -> list[str]:
    return [artifact.name for artifact in find_artifacts(folder, REPO, None, quants)]


def test_a_searched_file_is_asked_for_by_its_size(folder: Path) -> None:
    assert names(folder, "4.25bpw") == [NAME]
    assert names(folder, "4.25BPW,q4_k_m") == sorted([NAME, "Model-Q4_K_M"])
    with pytest.raises(PublishError, match=r"holds no 4.26bpw; build it first"):
        names(folder, "4.26bpw")
