"""Code that came with a model is not run, wherever it lies and whoever asks for it."""

from pathlib import Path
from typing import Any

import pytest

from quantkit.checkpoint.converter.process import ConverterProcess
from quantkit.checkpoint.converter.provision import find_converter
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import ConverterError
from tests.architectures.coded import CODED, RAN, baited
from tests.architectures.ggufs import stored_checkpoints
from tests.checkpoint.converter.shared import one_converter

pytestmark = pytest.mark.native

# Whose vocabulary only its code reads.
NEEDS_CODE = {"qwen-coded": "tokenization_qwen.QWenTokenizer"}


@pytest.fixture
def coded(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """Checkpoints with code, which lies in transformers' cache as well, as if it had been trusted.

    It is there under every name that transformers looks for such code under.
    """
    made = stored_checkpoints(tmp_path_factory, CODED)
    folders = {name: baited(made[name], tmp_path / name) for name in CODED}
    home = tmp_path / "home"
    for cache in (home / "modules", tmp_path / "modules"):
        for name, folder in folders.items():
            for package in (name, name.replace("-", "_hyphen_")):
                place = cache / "transformers_modules" / package
                place.mkdir(parents=True, exist_ok=True)
                (place / "__init__.py").touch()
                for code in folder.glob("*.py"):
                    (place / code.name).write_bytes(code.read_bytes())
        (cache / "transformers_modules" / "__init__.py").touch()
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return folders


def test_no_code_runs_and_what_needs_none_is_described(coded: dict[str, Path]) -> None:
    with one_converter():
        for name, folder in coded.items():
            if wanted := NEEDS_CODE.get(name):
                with pytest.raises(ConverterError) as refused:
                    open_checkpoint(folder)
                assert f"wants its own code to be run ({wanted})" in str(refused.value)
                assert "never runs code that comes with a model" in str(refused.value)
            else:
                description = open_checkpoint(folder).description
                assert description is not None
                assert description.header.metadata["tokenizer.ggml.model"] == "gpt2"
            assert not (folder / RAN).exists(), name


def test_no_code_runs_where_it_lies_beside_what_transformers_opens(
    coded: dict[str, Path],
) -> None:
    """The converter is shown a folder without code; here is what keeps it from running besides."""
    process = ConverterProcess(find_converter())
    try:
        for name, folder in coded.items():
            request = {"ask": "tokenizer", "folder": str(folder), "whole": False}
            answer, _ = process.ask(request, no_rows)
            if wanted := NEEDS_CODE.get(name):
                assert answer == {"refused": f"code:{wanted}"}
            else:
                assert answer["class"] == "PreTrainedTokenizerFast"
            assert not (folder / RAN).exists(), name
    finally:
        process.close()


def no_rows(name: str, first: int, count: int) -> Any:
    raise AssertionError((name, first, count))
