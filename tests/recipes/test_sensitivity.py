"""What is measured of a model in one pass is what noise in its weights costs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantkit.calibration.settings import Settings
from quantkit.encodings.kernel import load_kernel
from quantkit.recipes.candidates import offer
from quantkit.recipes.losses import read_measured, write_measured
from quantkit.recipes.sensitivity import measure, measure_sensitivities
from tests.calibration.runs import TINY, corpus_of, opened
from tests.calibration.small_models import ordinary_model

CHUNKS, CONTEXT = 4, 256
ERROR = 0.002  # relative, of the noise: between those of Q4_K and Q5_K


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-mixtral"])
def test_it_tells_what_noise_in_each_tensor_costs(name: str, tmp_path: Path) -> None:
    """Of a mixture, what comes before a router costs more: tokens then go to other experts."""
    checkpoint, model = opened(TINY / name)
    corpus = corpus_of(checkpoint, tmp_path, CHUNKS, CONTEXT)
    found = measure_sensitivities(checkpoint, model, corpus, Settings())
    matrices = {target.name for target in model.targets if len(target.shape) > 1}
    assert found.keys() == matrices
    costs = _costs_of_noise(TINY / name, torch.from_numpy(corpus.tokens))
    ratios = {tensor: ERROR * found[tensor] / cost for tensor, cost in costs.items()}
    if name == "tiny-mixtral":
        assert max(ratios.values()) < 1.5, ratios
        ratios = {tensor: ratios[tensor] for tensor in _AFTER_THE_LAST_ROUTER}
    assert min(ratios.values()) > 0.5, ratios
    assert max(ratios.values()) < 2, ratios
    assert np.exp(np.mean(np.log(list(ratios.values())))) == pytest.approx(1, abs=0.2)


def test_a_search_finds_all_that_it_needs(tmp_path: Path) -> None:
    checkpoint, model = opened(TINY / "tiny-mistral")
    corpus = corpus_of(checkpoint, tmp_path, 2, 64)
    shares: list[float] = []
    found = measure(
        checkpoint,
        model,
        corpus,
        None,
        load_kernel("ggml"),
        Settings(),
        rows=16,
        report=shares.append,
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for one in offer(model, ()):
        assert one.target.name in found.sensitivities
        assert all((one.target.name, kind.name) in found.errors for kind in one.encodings)
    for name in found.sensitivities:
        assert found.errors[name, "Q8_0"] < found.errors[name, "Q4_K"] < found.errors[name, "Q2_K"]
    write_measured(tmp_path / "losses.json", found)
    assert read_measured(tmp_path / "losses.json") == found


def _costs_of_noise(folder: Path, tokens: torch.Tensor) -> dict[str, float]:
    """The mean divergence that noise in a tensor makes, for tensors of each kind."""
    model = ordinary_model(folder)
    exact = _log_chances(model, tokens)
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(7)
    costs = {}
    for tensor, (parameter, rows) in _PLACES.items():
        if parameter not in parameters:
            continue
        weight = parameters[parameter].data[..., rows, :]
        kept = weight.clone()
        size = weight.square().mean(-1, keepdim=True).sqrt()
        weight += torch.randn(weight.shape, generator=generator) * size * ERROR**0.5
        other = _log_chances(model, tokens)
        costs[tensor] = float((exact.exp() * (exact - other)).sum(-1).mean())
        weight.copy_(kept)
    return costs


def _log_chances(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.log_softmax(logits[:, tokens.shape[1] // 2 : -1].double(), -1)


_AFTER_THE_LAST_ROUTER = ("output.weight", "blk.3.ffn_down_exps.weight")
_PLACES = {
    "token_embd.weight": ("model.embed_tokens.weight", slice(None)),
    "output.weight": ("lm_head.weight", slice(None)),
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", slice(None)),
    "blk.1.attn_v.weight": ("model.layers.1.self_attn.v_proj.weight", slice(None)),
    "blk.2.attn_output.weight": ("model.layers.2.self_attn.o_proj.weight", slice(None)),
    "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj.weight", slice(None)),
    "blk.3.ffn_down.weight": ("model.layers.3.mlp.down_proj.weight", slice(None)),
    "blk.1.ffn_gate_exps.weight": ("model.layers.1.mlp.experts.gate_up_proj", slice(0, 256)),
    "blk.1.ffn_up_exps.weight": ("model.layers.1.mlp.experts.gate_up_proj", slice(256, 512)),
    "blk.3.ffn_down_exps.weight": ("model.layers.3.mlp.experts.down_proj", slice(None)),
}
