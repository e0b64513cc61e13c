"""Matrices that are replaced as the run comes to them, of any architecture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.lockstep.run import run
from quantkit.calibration.lockstep.states import States
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.quantizer import Quantizer, Recipe
from quantkit.encodings.gptq import Grid
from tests.calibration.small_models import (
    CHUNKS,
    CPU,
    difference,
    opened,
    ordinary_model,
    small_model,
    some_tokens,
)

# Window and softcap; latent attention and shared experts; linear attention; experts stored
# transposed, with biases.
NAMES = ("gemma2", "deepseek2", "qwen3next", "gpt-oss")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {name: small_model(name, base / name) for name in NAMES}


class Halving:
    """A `Replacer` that keeps what it was shown and what it gave back: coarser matrices."""

    def __init__(self, forward: LockstepForward) -> None:
        self._linears = forward.linears
        self._moment = torch.empty(0)
        self.moments: dict[tuple[str, int | None], Tensor] = {}
        self.matrices: dict[tuple[str, int | None], Tensor] = {}

    def wants(self, parameter: str) -> bool:
        return parameter in self._linears

    def take_in(self, inputs: Iterable[tuple[Tensor, float]], columns: int, _what: str) -> None:
        self._moment = torch.zeros(columns, columns, dtype=torch.float64)
        for x, share in inputs:
            self._moment += share * x.double().T @ x.double()

    def replace(self, parameter: str, expert: int | None, matrix: Tensor) -> Tensor:
        place = (parameter, expert)
        assert place not in self.matrices
        self.moments[place] = self._moment
        self.matrices[place] = (matrix * 64).round() / 80
        return self.matrices[place]


def replaced_run(forward: LockstepForward, replacer: Any, work: Path | None = None) -> list[Tensor]:
    states = States(work or Path(), CHUNKS, CPU, spill=work is not None, durable=False)
    found: dict[int, Tensor] = {}
    tokens = some_tokens()
    run(
        forward,
        tokens,
        states,
        found.__setitem__,
        Visitors(replacer=replacer),
        finish_layer=lambda _layer, _routing: states.turn_over(),
    )
    return [found[chunk] for chunk in range(CHUNKS)]


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_later_is_computed_from_what_was_replaced(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The logits, and the inputs that were shown, are those of a model of the new matrices."""
    forward = opened(folders[name])
    halving = Halving(forward)
    ours = replaced_run(forward, halving)
    assert {parameter for parameter, _ in halving.matrices} == forward.linears
    model = ordinary_model(folders[name])
    state = model.state_dict()
    for (parameter, expert), matrix in halving.matrices.items():
        held = state[parameter] if expert is None else state[parameter][expert]
        turned = expert is not None and name == "gpt-oss"
        held.copy_(matrix.T if turned else matrix)
    shown: dict[str, Tensor] = {}

    def hook(full: str, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).double()
        shown[full] = shown.get(full, torch.zeros(())) + x.T @ x

    for full, module in model.named_modules():
        if f"{full}.weight" in forward.linears:
            module.register_forward_pre_hook(
                lambda _module, inputs, full=full: hook(f"{full}.weight", inputs[0])
            )
    with torch.inference_mode():
        theirs = [
            model(input_ids=chunk[None], use_cache=False).logits[0]
            for chunk in torch.from_numpy(some_tokens())
        ]
    assert difference(ours, theirs) < 1e-6
    for full, moment in shown.items():
        torch.testing.assert_close(halving.moments[full, None], moment, rtol=1e-4, atol=1e-6)
    on_disk = Halving(forward)
    assert all(map(torch.equal, replaced_run(forward, on_disk, tmp_path), ours))
    assert all(torch.equal(halving.moments[at], on_disk.moments[at]) for at in on_disk.moments)
    assert not list(tmp_path.glob("within-*"))


def test_gptq_of_an_architecture_that_is_no_family(folders: dict[str, Path]) -> None:
    forward = opened(folders["gpt-oss"])
    kept = []
    quantizer = Quantizer(
        Recipe(Grid(4, 32)),
        CPU,
        forward.linears,
        lambda parameter, expert, _rows, rounded: kept.append((parameter, expert, rounded)),
    )
    replaced_run(forward, quantizer)
    assert {parameter for parameter, _, _ in kept} == forward.linears
    assert len(kept) == len({(parameter, expert) for parameter, expert, _ in kept})
    for parameter, expert, rounded in kept:
        matrix = forward.parameters.load([parameter])[parameter]
        matrix = matrix if expert is None else matrix[expert].T
        error = (rounded.dequantize() - matrix).norm() / matrix.norm()
        assert error < 0.4, (parameter, expert)  # GPTQ moves weights beyond the nearest level
