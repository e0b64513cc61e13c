"""Perplexity of artifacts, against llama.cpp running the same weights at 32 bits."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quantkit.building import engine
from quantkit.building.work import prepare, prepare_export
from quantkit.formats.bnb import load
from quantkit.planning.quants import find_quants
from tests import native_tools
from tests.checkpoints.text import heldout_text
from tests.formats.bnb.folders import CHECKPOINTS, build_folder

pytestmark = [pytest.mark.native, pytest.mark.filterwarnings("ignore")]

CONTEXT = 256
MIXTRAL = CHECKPOINTS / "tiny-mixtral"
BATCH = 8


def in_transformers(model: Any, folder: Path, text: str) -> float:
    """As llama-perplexity reckons: windows that begin with BOS, of which the second half counts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT).clone()
    windows[:, 0] = tokenizer.bos_token_id
    first = CONTEXT // 2
    nats: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in windows.split(BATCH):
            logits = model(batch).logits.float()[:, first:-1]
            chances = logits.log_softmax(-1).gather(-1, batch[:, first + 1 :, None])
            nats.append(-chances.flatten())
    return math.exp(float(torch.cat(nats).double().mean()))


def in_llama_cpp(work: Any, out: Path, text: Path) -> float:
    (artifact,) = engine.build(work, out, jobs=2, max_memory=2**30)
    return native_tools.perplexity(artifact.path, text, context=CONTEXT)


def test_perplexity(tmp_path: Path) -> None:
    text = tmp_path / "heldout.txt"
    text.write_text(heldout_text())
    f32 = find_quants(["f32"])
    original = in_llama_cpp(prepare(MIXTRAL, f32), tmp_path / "original", text)
    for quant, to_weights, to_original in (("bnb-nf4", 0.002, 0.05), ("bnb-int8", 0.002, 0.005)):
        folder = build_folder(MIXTRAL, tmp_path / quant, quant)
        weights = in_llama_cpp(prepare_export(folder, f32), tmp_path / f"{quant}-f32", text)
        loaded = in_transformers(load(folder), folder, text.read_text())
        print(  # noqa: T201 - shown with -s
            f"{quant}: {loaded:.4f}, its weights at f32 in llama.cpp {weights:.4f}, "
            f"original {original:.4f}"
        )
        assert loaded == pytest.approx(weights, rel=to_weights)
        assert loaded == pytest.approx(original, rel=to_original)
        assert weights != original
