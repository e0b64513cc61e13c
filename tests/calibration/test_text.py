"""Text in; out come the tokens that llama.cpp makes of it with the same model's GGUF."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import (
    BUILT_IN,
    RANDOM,
    built_in_text,
    make_corpus,
    random_corpus,
)
from quantkit.checkpoint.tokenizer.encode import EncodedText
from quantkit.core.errors import CalibrationError
from tests.building.builds import build
from tests.calibration.runs import TINY, opened
from tests.checkpoints.text import heldout_text
from tests.encoded import encode_text

TEXTS = {
    "English": heldout_text()[:20_000],
    "code and all": built_in_text()[:60_000],
    "spaces": " two  three   \n\n\n\ttabs \n ends with a space ",
    "no English": "d\u00e9j\u00e0 vu \u2014 \u65e5\u672c\u8a9e \U0001f680\u200d\U0001f525 \u00df",
    "special tokens as text": "<s>not the start</s> [INST] <unk>",
}


def llama_tokens(gguf: Path, text: str) -> list[int]:
    from llama_cpp import Llama

    vocabulary = Llama(str(gguf), vocab_only=True)
    return vocabulary.tokenize(text.encode(), add_bos=False, special=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoints, one with tokenizer.json and one with tokenizer.model alone, and their GGUFs."""
    folder = tmp_path_factory.mktemp("models")
    plain = shutil.copytree(TINY / "tiny-mistral", folder / "plain")
    (plain / "tokenizer.json").unlink()
    checkpoints = {"tokenizer.json": TINY / "tiny-mistral", "tokenizer.model": plain}
    return {
        name: (path, build(path, folder / f"{name}-GGUF", "q8_0")[0].path)
        for name, path in checkpoints.items()
    }


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("name", TEXTS)
def test_tokens_are_llama_cpps(models: dict[str, tuple[Path, Path]], kind: str, name: str) -> None:
    checkpoint, gguf = models[kind]
    config = opened(checkpoint)[0].config
    assert encode_text(checkpoint, config, TEXTS[name]) == EncodedText(
        llama_tokens(gguf, TEXTS[name]), 1
    )


def test_chunks_are_cut_as_llama_imatrix_cuts_them(tmp_path: Path) -> None:
    checkpoint, _ = opened(TINY / "tiny-mistral")
    text = tmp_path / "text.txt"
    text.write_text(heldout_text() + "\n")
    ids = encode_text(checkpoint.path, checkpoint.config, heldout_text()).ids
    corpus = make_corpus(checkpoint, [TextSource(text)], 5, 100)
    assert corpus.names == (str(text),)
    assert corpus.tokens.shape == (5, 100)
    assert corpus.tokens[:, 0].tolist() == [1] * 5
    whole = [1, *ids]
    for number, chunk in enumerate(corpus.tokens):
        assert chunk[1:].tolist() == whole[100 * number + 1 : 100 * (number + 1)]
    everything = make_corpus(checkpoint, [TextSource(text)], 10**6, 100)
    assert everything.chunks == len(whole) // 100


def test_several_texts_follow_each_other(tmp_path: Path) -> None:
    checkpoint, _ = opened(TINY / "tiny-mistral")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("one two " * 100 + "\n")
    files[1].write_text("three four " * 100)
    corpus = make_corpus(checkpoint, [TextSource(file) for file in files], 100, 16)
    both = encode_text(
        checkpoint.path, checkpoint.config, "one two " * 100 + "\n\n" + "three four " * 100
    )
    assert corpus.chunks == (1 + len(both.ids)) // 16


def test_the_built_in_text_is_enough_and_always_the_same() -> None:
    text = built_in_text()
    assert text == built_in_text()
    assert 1_000_000 < len(text) < 6_000_000
    # Both kinds from the start, so that a short calibration sees both.
    start = text[:20_000]
    assert "def " in start
    assert "statement" in start
    checkpoint, _ = opened(TINY / "tiny-mistral")
    corpus = make_corpus(checkpoint, [], 128, 512)
    assert corpus.names == (BUILT_IN,)
    assert corpus.tokens.shape == (128, 512)


def test_random_tokens_say_what_they_are() -> None:
    corpus = random_corpus(1000, 3, 32)
    assert corpus.names == (RANDOM,)
    assert corpus.tokens.shape == (3, 32)
    assert np.unique(corpus.tokens).size > 80
    assert (corpus.tokens == random_corpus(1000, 3, 32).tokens).all()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"text\.txt is empty"),
        (b"\n", r"text\.txt is empty"),
        (b"far too short", r"text\.txt has \d+ tokens, .* at least 1024"),
    ],
)
def test_too_little_text_is_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    checkpoint, _ = opened(TINY / "tiny-mistral")
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(CalibrationError, match=complaint):
        make_corpus(checkpoint, [TextSource(text)], 128, 512)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = opened(TINY / "tiny-mistral")
    text = tmp_path / "text.txt"
    with pytest.raises(CalibrationError, match="does not exist"):
        make_corpus(checkpoint, [TextSource(text)], 128, 512)
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        make_corpus(checkpoint, [TextSource(text)], 128, 512)
