"""llama.cpp gives the tokens of a described checkpoint's own tokenizer, or it is told why not."""

import json
import struct
from pathlib import Path

import pytest

from quantkit.api.checks import expect_tokens_of
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.open import open_checkpoint
from quantkit.verification.tokens import ExpectedTokens
from tests.architectures.ggufs import make_checkpoints
from tests.architectures.tokens import write_tokenizer
from tests.checkpoint.converter.shared import one_converter
from tests.checkpoint.vocabularies import tekken

pytestmark = pytest.mark.native

# What the vocabulary is compared with, and what of the converter's keys is mended.
FLAG = "tokenizer.ggml.add_bos_token"
COMPARED = {
    "qwen3": ("tokenizer.json", {FLAG}),
    "bert": ("tokenizer.json", set()),
    "gemma3": ("tokenizer.model", {"tokenizer.ggml.add_space_prefix"}),
    "phimoe": ("tokenizer.model", set()),
    "t5": ("spiece.model", {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}),
}
LACKING = "rwkv6"


def test_tokens_are_those_of_the_checkpoints_own_tokenizer(tmp_path: Path) -> None:
    folders = make_checkpoints([*COMPARED, LACKING], tmp_path)
    with one_converter():
        for name, (file, mended) in COMPARED.items():
            checkpoint = open_checkpoint(folders[name])
            expected = expect_tokens_of(checkpoint)
            assert expected is not None
            assert (name, expected.file) == (name, file)
            assert checkpoint.description is not None
            assert checkpoint.description.tokens.mended == mended
            mends = [text for text in checkpoint.remarks if "leaves out" not in text]
            assert len(mends) == len(mended)
            assert differing(checkpoint, expected, tmp_path / f"{name}.gguf") == []
        lacking = expect_tokens_of(open_checkpoint(folders[LACKING]))
    assert lacking is not None
    assert not lacking.texts
    assert lacking.lacking is not None
    assert lacking.lacking.startswith(f"no library opens the tokenizer in {folders[LACKING]} (")


def test_vocabulary_of_a_tokenizer_json_merges_in_its_order(tmp_path: Path) -> None:
    """The converter gives all its pieces the same score."""
    folder = make_checkpoints(["jamba"], tmp_path)["jamba"]
    (folder / "tokenizer.model").unlink()
    write_tokenizer(folder, "merges")

    checkpoint = open_checkpoint(folder)

    expected = expect_tokens_of(checkpoint)
    assert expected is not None
    assert expected.file == "tokenizer.json"
    assert checkpoint.description is not None
    assert "tokenizer.ggml.scores" in checkpoint.description.tokens.mended
    assert any("same score" in remark for remark in checkpoint.remarks)
    assert differing(checkpoint, expected, tmp_path / "jamba.gguf") == []


def test_tekken_alone(tmp_path: Path) -> None:
    """The converter wants mistral-common for it."""
    folder = make_checkpoints(["mistral3"], tmp_path)["mistral3"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "tekken.json").write_text(json.dumps(tekken()))

    checkpoint = open_checkpoint(folder)

    expected = expect_tokens_of(checkpoint)
    assert expected is not None
    assert expected.file == "tekken.json"
    assert checkpoint.description is not None
    assert not checkpoint.description.tokens.mended
    assert differing(checkpoint, expected, tmp_path / "tekken.gguf") == []


def differing(checkpoint: Checkpoint, expected: ExpectedTokens, file: Path) -> list[str]:
    """Texts that llama.cpp gives other tokens than it should."""
    from llama_cpp import Llama

    assert checkpoint.description is not None
    entries = checkpoint.description.header.entries
    file.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(e.packed for e in entries)
    )
    llama = Llama(str(file), vocab_only=True, verbose=False)
    wrong = []
    for text, ids, simpler, _ in expected.texts:
        found = llama.tokenize(text.encode(), add_bos=False, special=True)
        wrong += [text] * (found not in (ids, simpler))
    for text, ids in expected.framed:
        wrong += [text] * (llama.tokenize(text.encode(), add_bos=True, special=True) != ids)
    return wrong
