"""The way back through streamed layers against autograd through the ordinary model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantkit.calibration.lockstep.backward import SEED, Bend, find_bend
from quantkit.core.errors import CalibrationError
from tests.calibration.small_models import opened, ordinary_model, small_model, some_tokens

IN_MEMORY, ON_DISK = 2**30, 0

# Softcapped scores and a window; latent attention with shared experts; linear attention; experts
# stored transposed, with biases; experts weighed before their matrices; experts without matrices.
NAMES = ("gemma2", "deepseek2", "qwen3next", "gpt-oss", "longcat")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {name: small_model(name, base / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_autograd_finds(name: str, folders: dict[str, Path]) -> None:
    tokens = some_tokens()
    wanted = _in_memory(folders[name], tokens)
    forward = opened(folders[name])
    found = find_bend(forward, tokens, IN_MEMORY)
    assert found.rows.keys() <= wanted.rows.keys()  # not biases of experts, nor convolutions
    linears = {place for place in wanted.rows if place[0] in forward.linears}
    assert linears <= found.rows.keys()
    for place, rows in found.rows.items():
        # Gradients of a row may all but cancel; what such a row costs is nothing.
        most = 1e-4 * float(rows.mean())
        np.testing.assert_allclose(rows, wanted.rows[place], 1e-3, most, err_msg=str(place))
    assert found.embeddings == pytest.approx(wanted.embeddings, rel=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "deepseek2"])
def test_on_the_disk_it_is_the_same_to_the_bit(name: str, folders: dict[str, Path]) -> None:
    tokens = some_tokens()
    shares: list[float] = []
    first = find_bend(opened(folders[name]), tokens, IN_MEMORY, shares.append)
    second = find_bend(opened(folders[name]), tokens, ON_DISK)
    assert first.rows.keys() == second.rows.keys()
    for place, rows in first.rows.items():
        assert rows.tolist() == second.rows[place].tolist()
    assert first.embeddings == second.embeddings
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_layer_is_in_memory_on_the_way_back(folders: dict[str, Path]) -> None:
    forward = opened(folders["qwen3next"])
    seen = []

    def look(_share: float) -> None:
        for name, parameter in forward.model.named_parameters():
            if ".layers." in name and not parameter.is_meta:
                seen.append(name.split(".layers.")[1].split(".")[0])
                assert not name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        assert len(set(seen)) <= 1
        seen.clear()

    find_bend(forward, some_tokens(), IN_MEMORY, look)
    assert all(parameter.is_meta for parameter in forward.model.parameters())


def test_what_layers_hand_on_beside_states_is_refused(tmp_path: Path) -> None:
    forward = opened(small_model("gemma3n", tmp_path / "gemma3n", num_kv_shared_layers=2))
    with pytest.raises(CalibrationError, match="pass on more than hidden states"):
        find_bend(forward, some_tokens(), IN_MEMORY)


def test_experts_within_attention_are_refused(tmp_path: Path) -> None:
    forward = opened(small_model("jetmoe", tmp_path / "jetmoe"))
    with pytest.raises(CalibrationError, match="experts within its attention"):
        find_bend(forward, some_tokens(), IN_MEMORY)


def _in_memory(folder: Path, tokens: NDArray[np.int64]) -> Bend:
    """The same by the gradients of all weights of the whole model, chunk by chunk."""
    model = ordinary_model(folder)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # which may be tied
    bend, scored = Bend(), 0
    for number, ids in enumerate(torch.from_numpy(tokens)):
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, len(ids) // 2 : -1]
        chances = torch.softmax(logits.detach(), -1)
        drawn = torch.Generator().manual_seed(SEED + number)
        labels = torch.multinomial(chances, 1, generator=drawn)
        torch.log_softmax(logits, -1).gather(-1, labels).sum().backward()
        scored += len(labels)
        bend.embeddings += float(
            (embeddings.weight.grad * embeddings.weight).detach().square().sum()
        )
        for name, weight in model.named_parameters():
            if weight.grad is None or weight.ndim < 2 or weight is embeddings.weight:
                continue
            costs = (weight.grad * weight).detach().square().double()
            if _is_transposed(model, name):
                costs = costs.mT
            parts = [(None, costs)] if weight.ndim == 2 else list(enumerate(costs))
            for expert, part in parts:
                if bool(part.any()):
                    before = bend.rows.get((name, expert), np.zeros(len(part)))
                    bend.rows[name, expert] = before + part.sum(1).numpy()
    bend.embeddings /= 2 * scored
    bend.rows = {place: rows / (2 * scored) for place, rows in bend.rows.items()}
    return bend


def _is_transposed(model: Any, name: str) -> bool:
    module, _, own = name.rpartition(".")
    transposed: bool = getattr(model.get_submodule(module), "is_transposed", False)
    return transposed and own.endswith("_proj")
