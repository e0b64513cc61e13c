"""Models that embed, and models with an encoder and a decoder: smoke test and comparison."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.core.errors import SmokeError
from quantkit.verification import checks
from quantkit.verification.embeddings import (
    compare_embeddings,
    read_embeddings,
    split_text,
    write_embeddings,
)
from quantkit.verification.smoke import smoke
from tests.architectures.ggufs import small_ggufs
from tests.cli.command import Outcome, quantkit
from tests.encoders import tiny_bert, tiny_t5
from tests.verification.faults import scale_tensors, with_fault

FEW = ("--chunks", 4, "--context", 64, "--jobs", 1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "bert": tiny_bert(folder / "Bert-BF16.gguf"),
        "t5": tiny_t5(folder / "T5-BF16.gguf"),
        "ranker": tiny_bert(folder / "Ranker-BF16.gguf", pooling=4),
        "plain": tiny_bert(folder / "Plain-BF16.gguf", pooling=None),
    }


def build(source: Path, out: Path, *options: str) -> dict[str, Any]:
    """Q8_0 and Q4_0 of a GGUF, smoke-tested; the tests' records by quant."""
    quants = ("-q", "q8_0", "-q", "q4_0", "--jobs", 1)
    done = quantkit("build", source, *quants, "-o", out, "--json", *options)
    assert done.code in (0, None), done.err
    return {e["quant"]: e["smoke"] for e in json.loads(done.out)["artifacts"].values()}


def compared(done: Outcome) -> dict[str, dict[str, Any]]:
    assert done.code in (0, None), done.err
    return {row["quant"]: row for row in json.loads(done.out)["artifacts"]}


def test_an_embedding_model(sources: dict[str, Path], tmp_path: Path) -> None:
    records = build(sources["bert"], tmp_path / "out")
    for record in records.values():
        assert record["verdict"] == "passed"
        assert (record["text"], record["tokens_per_second"]) == (None, None)
        assert record["details"]["embeddings"] == {"texts": 5, "numbers": 128, "pooling": "mean"}
        assert record["details"]["repeats"] >= 3
    rows = compared(quantkit("compare", tmp_path / "out", *FEW, "--json"))
    assert rows["bf16"]["is_reference"]
    assert rows["bf16"]["cosines"]["mean"] == pytest.approx(1, abs=1e-6)
    assert 0.9 < rows["q4_0"]["cosines"]["mean"] < rows["q8_0"]["cosines"]["mean"] < 1
    assert all(row["cosines"]["worst"] <= row["cosines"]["mean"] for row in rows.values())
    assert all(row["measures"] is None for row in rows.values())
    assert all(row["verdict"]["judged"] and row["verdict"]["ok"] for row in rows.values())

    shown = quantkit("compare", tmp_path / "out", *FEW)
    assert "embeddings of 4 texts" in shown.out
    assert "mean cosine" in shown.out
    assert "PPL" not in shown.out
    ran = quantkit("smoke", tmp_path / "out" / "Bert-Q8_0.gguf", "--reference", sources["bert"])
    assert "It embedded 5 texts in 128 numbers each (pooling: mean)" in ran.out
    assert "cosine of embeddings 0.999" in ran.out
    refused = quantkit("perplexity", tmp_path / "out" / "Bert-Q8_0.gguf", *FEW)
    assert refused.code not in (0, None)
    assert "It embeds texts and predicts no tokens" in refused.err + refused.out


@pytest.mark.parametrize(
    ("name", "numbers", "pooling"), [("ranker", 1, "rank"), ("plain", 128, "mean")]
)
def test_other_poolings(
    sources: dict[str, Path], tmp_path: Path, name: str, numbers: int, pooling: str
) -> None:
    """A reranker is run for its scores and compared by what they are made of."""
    records = build(sources[name], tmp_path / "out")
    made = records["q8_0"]["details"]["embeddings"]
    assert (made["numbers"], made["pooling"]) == (numbers, pooling)
    rows = compared(quantkit("compare", tmp_path / "out", *FEW, "--json"))
    assert 0.99 < rows["q8_0"]["cosines"]["mean"] < 1


def test_an_encoder_with_a_decoder(sources: dict[str, Path], tmp_path: Path) -> None:
    records = build(sources["t5"], tmp_path / "out")
    for record in records.values():
        assert record["verdict"] == "passed"
        assert len(record["text"]) > 0
        assert record["tokens_per_second"] > 0
        assert record["details"]["repeats"] >= 3
    rows = compared(quantkit("compare", tmp_path / "out", *FEW, "--json"))
    klds = [rows[quant]["measures"]["kld"] for quant in ("bf16", "q8_0", "q4_0")]
    assert 0 <= abs(klds[0]) < 1e-4 < klds[1] < klds[2]
    assert rows["q8_0"]["measures"]["n_tokens"] == 4 * 31  # the second half of each window
    assert rows["q8_0"]["verdict"]["ok"]
    assert "No limits are known for a decoder's predictions" in rows["q8_0"]["verdict"]["reason"]


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("bert", "layer_output_norm", "llama.cpp computes only zeros with it as embedding 1."),
        ("bert", "token_embd.weight", "the same embedding for every text"),
        ("t5", "dec.output_norm", "the same logit for every token"),
    ],
)
def test_what_cannot_be_right_fails_the_smoke_test(
    sources: dict[str, Path], tmp_path: Path, name: str, part: str, reason: str
) -> None:
    broken = with_fault(
        sources[name], tmp_path / "broken.gguf", lambda f: scale_tensors(f, part, 0)
    )
    result = smoke(broken, threads=1)
    assert not result.ok
    assert reason in result.verdict


@pytest.mark.parametrize(("name", "part"), [("bert", "0.ffn_up.weight"), ("t5", "cross_attn_q")])
def test_a_broken_tensor_fails_the_comparison(
    sources: dict[str, Path], tmp_path: Path, name: str, part: str
) -> None:
    file = tmp_path / "broken.gguf"
    broken = with_fault(sources[name], file, lambda f: scale_tensors(f, part, 1.2))
    done = quantkit("compare", broken, "--reference", sources[name], *FEW)
    assert done.code == 1
    assert f"The weights of {'blk.0.ffn_up' if name == 'bert' else 'dec.blk.0.cross'}" in done.err


# The vocabularies.


class Normalizing:
    """A model whose vocabulary makes letters small, or so it seems."""

    vocabulary_type = 3

    def __init__(self, *, contradicts: bool) -> None:
        self.contradicts = contradicts

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        assert not add_special
        odd = [1] if self.contradicts and text.islower() else []
        return [ord(c) for c in text.lower().strip()] + odd

    def piece(self, token: int) -> bytes:
        return chr(token).encode()

    def is_unknown(self, token: int) -> bool:
        return token > 0x2000


def test_a_vocabulary_must_repeat_itself() -> None:
    assert checks._check_repeats(Normalizing(contradicts=False)) >= 5  # type: ignore[arg-type]
    with pytest.raises(SmokeError, match="its vocabulary contradicts itself"):
        checks._check_repeats(Normalizing(contradicts=True))  # type: ignore[arg-type]


# Pure functions.


def test_cosines(tmp_path: Path) -> None:
    theirs = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    ours = np.array([[2, 0], [0, -1], [3, 0]], np.float32)
    found = compare_embeddings(ours, theirs)
    assert (found.n_texts, found.worst) == (3, -1)
    assert found.mean == pytest.approx((1 - 1 + 0.5**0.5) / 3)
    file = tmp_path / "embeddings"
    write_embeddings(file, theirs)
    assert np.array_equal(read_embeddings(file), theirs)
    os.truncate(file, 20)
    with pytest.raises(SmokeError, match="holds no embeddings"):
        read_embeddings(file)


def test_texts_are_cut_where_sentences_end() -> None:
    text = "One sentence here. " * 60 + "\n\nTiny.\n\n" + "word " * 200
    pieces = split_text(text)
    assert len(pieces) > 3
    assert all(len(piece) < 500 for piece in pieces[:-1])
    assert all(piece.endswith(".") for piece in pieces[:2])
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert split_text("short") == ["short"]


@pytest.mark.native
def test_small_models_of_many_kinds(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Those that the converter makes: each is quantized, runs, and is as healthy as it should."""
    embed = ["bert", "nomic-bert", "modern-bert", "t5encoder"]
    for name, file in small_ggufs(tmp_path_factory, [*embed, "t5", "mamba", "lfm2"]).items():
        out = tmp_path / name
        done = quantkit("build", file, "-q", "q4_k_m", "-o", out, "--jobs", 1)
        assert done.code in (0, None), (name, done.err)
        if name in embed:
            done = quantkit("compare", out, "--chunks", 8, "--jobs", 1)
            assert done.code in (0, None), (name, done.err)
            assert done.out.count("healthy") == 1, (name, done.out)
