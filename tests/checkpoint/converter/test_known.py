"""A model that the converter has no class for is refused before the converter is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.converter import rows
from quantkit.checkpoint.converter.known import unknown_architecture
from quantkit.checkpoint.converter.provision import find_converter
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import UnknownArchitectureError
from tests.random_checkpoints import random_checkpoint

TEXT = "Qwen3ForCausalLM"


@pytest.fixture(scope="module")
def tree() -> Path:
    return find_converter().tree


@pytest.mark.parametrize(
    ("config", "unknown"),
    [
        ({"architectures": [TEXT]}, None),
        ({"architectures": ["NoSuchForCausalLM", TEXT]}, "NoSuchForCausalLM"),
        ({"architectures": ["NoSuch"], "text_config": {"model_type": "x"}}, "NoSuch"),
        ({"architectures": ["NoSuch"], "text_config": 3}, "NoSuch"),
        # What the converter makes of these is its business.
        ({"architectures": ["NoSuch"], "text_config": {"architectures": [TEXT]}}, None),
        ({"architectures": ["NoSuch"], "llm_config": {"architectures": ["Nor"]}}, None),
        ({"text_config": {"architectures": ["NoSuch"]}}, None),
        ({}, None),
        ({"architectures": []}, None),
        ({"architectures": [3]}, None),
        ({"architectures": "NoSuch"}, None),
    ],
)
def test_what_the_pinned_converter_names(
    tree: Path, config: dict[str, Any], unknown: str | None
) -> None:
    assert unknown_architecture(tree, config) == unknown


def test_a_converter_with_another_table_is_asked(tmp_path: Path) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text("MODELS = {}")
    assert unknown_architecture(tmp_path, {"architectures": ["NoSuch"]}) is None


def test_no_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("the converter is started")

    monkeypatch.setattr(rows, "ConverterProcess", forbidden)
    folder = random_checkpoint(tmp_path / "Model", "mistral", num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchForX"]}))
    with pytest.raises(UnknownArchitectureError, match="the architecture NoSuchForX, which neith"):
        open_checkpoint(folder)
