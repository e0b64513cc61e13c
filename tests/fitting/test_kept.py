"""What llama.cpp told is kept, and told again only of the very same question."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantkit.core.errors import GGUFError
from quantkit.fitting import kept
from quantkit.fitting.kept import recall
from quantkit.fitting.probe import probe
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.subject import PlanOptions, open_subject
from quantkit.planning.quants import find_quants
from quantkit.verification.hollow import HeaderOnly
from tests.parity.cases import TRAINED

FILES = (HeaderOnly("a.gguf", b"a header", 1000),)
TOLD = {
    "gpu": False,
    "use": "text",
    "whole_texts": False,
    "unused": ["x"],
    "contexts": [{"buffers": [["CPU", "compute", 1.25]], "memory": [["llama_kv", 2.5, 256, [0]]]}],
}
ASKED: dict[str, Any] = {"parallel": 1, "kv_type": "f16", "ladder": [256]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "quantkit" / "fit"


class Asked:
    """Stands for llama.cpp, and counts."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        return TOLD


def listed(value: Any) -> Any:
    """With lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: listed(one) for key, one in value.items()}
    return list(map(listed, value)) if isinstance(value, list | tuple) else value


def test_the_same_question_is_asked_once(cache: Path) -> None:
    ask = Asked()
    assert [listed(recall(FILES, ASKED, ask)) for _ in range(3)] == [TOLD] * 3
    assert ask.times == len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("files", "asked"),
    [
        ((replace(FILES[0], header=b"another"),), ASKED),
        ((replace(FILES[0], n_bytes=1001),), ASKED),
        ((*FILES, FILES[0]), ASKED),
        (FILES, {**ASKED, "parallel": 2}),
        (FILES, {**ASKED, "kv_type": "q8_0"}),
        (FILES, {**ASKED, "ladder": [512]}),
    ],
)
def test_another_question_is_asked(files: tuple[HeaderOnly, ...], asked: dict[str, Any]) -> None:
    ask = Asked()
    recall(FILES, ASKED, ask)
    recall(files, asked, ask)
    assert ask.times == 2


def test_another_library_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, folder = Asked(), tmp_path / "lib"
    folder.mkdir()
    library = folder / "libllama.so"
    library.write_bytes(b"one")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(folder))
    recall(FILES, ASKED, ask)
    library.write_bytes(b"another")
    recall(FILES, ASKED, ask)
    assert ask.times == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"gpu": 1}', b'{"contexts": []}'])
def test_what_is_damaged_is_asked_again(cache: Path, damage: bytes) -> None:
    ask = Asked()
    recall(FILES, ASKED, ask)
    [file] = cache.iterdir()
    file.write_bytes(damage)
    assert listed(recall(FILES, ASKED, ask)) == TOLD
    assert ask.times == 2
    recall(FILES, ASKED, ask)
    assert ask.times == 2


def test_a_refusal_is_not_kept(cache: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise GGUFError("no")

    for _ in range(2):
        with pytest.raises(GGUFError):
            recall(FILES, ASKED, refuse)
    assert not cache.exists()


def test_old_answers_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST", 2)
    for parallel in range(1, 5):
        recall(FILES, {**ASKED, "parallel": parallel}, Asked())
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_none(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder belongs")
    assert listed(recall(FILES, ASKED, Asked())) == TOLD


def test_a_model_is_asked_about_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = open_subject(str(TRAINED / "tiny-mistral"), PlanOptions(find_quants(["q8_0"])))
    first = probe(subject, ContextSettings(512))
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("quantkit.fitting.probe.run_worker", None)  # which is not called any more
    assert probe(subject, ContextSettings(512)) == first
    with pytest.raises(TypeError):
        probe(subject, ContextSettings(512, parallel=2))
