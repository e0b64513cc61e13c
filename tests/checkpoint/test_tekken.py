"""tekken.json: what becomes of it in GGUF, and that llama.cpp gives its tokens."""

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import TokenizerError
from tests.checkpoint import vocabularies as v
from tests.checkpoint.gguf_fields import read_fields
from tests.checkpoint.llama_tokens import TEXTS, differing, write_vocabulary
from tests.encoded import encode_text
from tests.raw_releases import raw_release

MISTRAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mistral"
KEY = "tokenizer.ggml."
# llama.cpp's pre-tokenizer splits at combining marks, which Mistral's pattern counts as letters.
WITHOUT_MARKS = [text for text in TEXTS if "\u0301" not in text and "\u0e32" not in text]


def write(
    folder: Path, tekken: v.Json | None = None, *, vocab_size: int = 414, **files: Any
) -> Path:
    config = {"model_type": "mistral", "vocab_size": vocab_size}
    return v.write(folder, config__json=config, tekken__json=tekken or v.tekken(), **files)


def keys(folder: Path) -> dict[str, Any]:
    fields = read_fields(write_vocabulary(folder))
    return {name: f.value for name, f in fields.items() if name.startswith("tokenizer.")}


def by_rank(tekken: v.Json) -> Callable[[str], list[int]]:
    """tiktoken's way: a stretch that is a token is one, else the lowest rank is joined first."""
    size = tekken["config"]["default_vocab_size"] - 24
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][:size]]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    split = Split(Regex(tekken["config"]["pattern"]), behavior="isolated")

    def encode(text: str) -> list[int]:
        ids = []
        for word, _ in split.pre_tokenize_str(text):
            parts = [bytes([byte]) for byte in word.encode()]
            if word.encode() in ranks:
                parts = [word.encode()]
            while len(parts) > 1:
                joints = [a + b for a, b in itertools.pairwise(parts)]
                best = min(joints, key=lambda joint: ranks.get(joint, size))
                if best not in ranks:
                    break
                at = joints.index(best)
                parts[at : at + 2] = [best]
            ids += [24 + ranks[part] for part in parts]
        return ids

    return encode


def test_keys(tmp_path: Path) -> None:
    found = keys(write(tmp_path, vocab_size=416, chat_template__jinja="{{ messages }}"))
    assert list(found) == [
        *(KEY + name for name in ("model", "pre", "merges")),
        *(KEY + f"{kind}_token_id" for kind in ("bos", "eos", "unknown", "padding")),
        *(KEY + name for name in ("tokens", "scores", "token_type")),
        KEY + "add_bos_token",
        KEY + "add_eos_token",
        "tokenizer.chat_template",
    ]
    assert (found[KEY + "model"], found[KEY + "pre"]) == ("gpt2", "tekken")
    tokens, types = found[KEY + "tokens"], found[KEY + "token_type"]
    assert tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert tokens[19:26] == [
        "[TOOL_CONTENT]",
        *(f"<SPECIAL_{i}>" for i in range(20, 24)),
        "\u0100",
        "\u0101",
    ]
    assert tokens[414:] == ["[PAD414]", "[PAD415]"]
    assert types == [*[v.CONTROL] * 24, *[v.NORMAL] * 390, *[v.UNUSED] * 2]
    ids = [found[KEY + f"{kind}_token_id"] for kind in ("bos", "eos", "unknown", "padding")]
    assert ids == [1, 2, 0, 11]
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_tokens(tmp_path: Path) -> None:
    tekken = v.tekken()
    folder = write(tmp_path, tekken)
    assert differing(folder, by_rank(tekken), WITHOUT_MARKS) == []


def test_fewer_tokens_than_listed(tmp_path: Path) -> None:
    tekken = v.tekken(340)
    assert len(tekken["vocab"]) > 340 - 24
    folder = write(tmp_path, tekken, vocab_size=340)
    assert len(keys(folder)[KEY + "tokens"]) == 340
    assert differing(folder, by_rank(tekken), WITHOUT_MARKS) == []


def test_our_own_tokens(tmp_path: Path) -> None:
    """What calibration and perplexity run on."""
    tekken = v.tekken()
    folder = write(tmp_path, tekken)
    text = "\n".join(TEXTS[:200])
    encoded = encode_text(folder, json.loads((folder / "config.json").read_text()), text)
    assert (encoded.ids, encoded.bos) == (by_rank(tekken)(text), 1)


def test_special_tokens_that_old_files_leave_out(tmp_path: Path) -> None:
    tekken = v.tekken()
    del tekken["special_tokens"]
    assert keys(write(tmp_path / "a", tekken)) == keys(write(tmp_path / "b"))
    tekken["config"]["version"] = "v11"
    with pytest.raises(TokenizerError, match="has no special_tokens"):
        write_vocabulary(write(tmp_path / "c", tekken))


def test_other_tokenizers_beside_it(tmp_path: Path) -> None:
    both = write(tmp_path / "model", model=v.sentencepiece_model())
    assert keys(both)[KEY + "model"] == "gpt2"
    fast = write(tmp_path / "fast", fast=v.piece_bpe(), vocab_size=420)
    assert keys(fast)[KEY + "model"] == "llama"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["config"].update(pattern=r"\w+"), "splits text by another pattern"),
        (lambda t: t["config"].update(default_vocab_size=450), "does not list 426 tokens by rank"),
        (lambda t: t["config"].pop("pattern"), "not laid out as"),
        (lambda t: t["vocab"][300].update({"token_bytes": "no base64!"}), "not laid out as"),
        (lambda t: t["vocab"].reverse(), "does not list 390 tokens by rank"),
        (lambda t: t["vocab"][300].update({"token_bytes": "IA=="}), "has a token twice"),
        (
            lambda t: t["vocab"][10].update({"token_bytes": "IA=="}),
            "first 256 tokens are not the bytes",
        ),
        (lambda t: t["special_tokens"].pop(4), "leave out an id"),
        (lambda t: t["special_tokens"][1].update({"token_str": "<bos>"}), "not those of a model"),
    ],
)
def test_refused(tmp_path: Path, change: Callable[[v.Json], Any], says: str) -> None:
    tekken = v.tekken()
    change(tekken)
    with pytest.raises(TokenizerError, match=rf"tekken\.json .*{says}"):
        write_vocabulary(write(tmp_path, tekken))


def test_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has 414 tokens, but config\.json says .* = 400"):
        write_vocabulary(write(tmp_path, vocab_size=400))


def test_raw_release(tmp_path: Path) -> None:
    raw = raw_release(MISTRAL, tmp_path / "raw", "safetensors")
    (raw / "tokenizer.model").unlink()
    v.write(raw, tekken__json=v.tekken(414))
    checkpoint = open_checkpoint(raw)
    assert {k: i for k, i in checkpoint.config.items() if k.endswith("_token_id")} == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
        "pad_token_id": 11,
    }
    found = keys(checkpoint.path)
    assert found[KEY + "pre"] == "tekken"
    assert len(found[KEY + "tokens"]) == checkpoint.config["vocab_size"]
