"""GPTQ by few tokens: the factor, and what is rounded with it, are those of the whole moment."""

import pytest
import torch

from quantkit.encodings.compensation import factorize, prepare
from quantkit.encodings.gptq import Grid, carried_together, solve
from quantkit.encodings.low_rank import LowRankCompensation, prepare_low_rank
from tests.encodings.rounding import output_error, round_to_nearest


def mixed_inputs(tokens: int, columns: int) -> torch.Tensor:
    """Columns of unequal strength that go together; two are always 0."""
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, columns, generator=generator)
    x *= torch.rand(columns, generator=generator)
    x += 0.5 * x.roll(1, 1) + 0.5 * torch.randn(tokens, 1, generator=generator)
    x[:, [5, columns - 3]] = 0
    return x / tokens**0.5


def whole_factor(found: LowRankCompensation) -> torch.Tensor:
    whole = (found.inputs.double() @ found.answers.double().T).triu()
    for number, block in enumerate(found.blocks):
        here = slice(number * found.step, number * found.step + len(block))
        whole[here, here] = block.double()
    return whole


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("tokens", [1, 60, 300])
def test_the_factor_is_the_moments(tokens: int, act_order: bool) -> None:
    inputs = mixed_inputs(tokens, 1100)
    found = prepare_low_rank(inputs, 512, act_order=act_order)
    moment = inputs.double().T @ inputs.double()
    expected = prepare(moment.clone(), act_order=act_order)
    if found.order is not None and expected.order is not None:
        # Of what is equally strong, last bits decide; the rest is compared in this order.
        strength = moment.diagonal()
        assert torch.allclose(strength[found.order], strength[expected.order], rtol=1e-5)
    order = torch.arange(1100) if found.order is None else found.order
    mean = float(moment.diagonal().sum()) / 1098
    moment.diagonal()[moment.diagonal() == 0] = mean
    factor, costs = factorize(moment[order][:, order].flip(0, 1), 0.01 * mean)
    assert torch.allclose(found.costs.double(), costs, rtol=2e-3)
    assert torch.allclose(whole_factor(found), factor, atol=2e-3)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", [Grid(4), Grid(4, 32, False), Grid(2, 96), Grid(3, 192, False)])
def test_it_rounds_as_the_whole_factor_does(grid: Grid, act_order: bool) -> None:
    """But for weights between two levels, which last bits decide."""
    generator = torch.Generator().manual_seed(3)
    columns = 1152 if grid.group_size in (96, 192) else 1280
    weight = torch.randn(96, columns, generator=generator) * 0.1
    inputs = mixed_inputs(200, columns)
    moment = inputs.T @ inputs
    few = prepare_low_rank(inputs, carried_together(grid, columns), act_order=act_order)
    ours = solve(weight, few, grid)
    whole = solve(weight, prepare(moment.clone(), act_order=act_order), grid)
    assert (ours.levels == whole.levels).float().mean() > 0.9
    errors = [output_error(weight, x.dequantize(), moment) for x in (ours, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=0.03)
    nearest = output_error(weight, round_to_nearest(weight, grid).dequantize(), moment)
    assert errors[0] < 0.4 * nearest


@pytest.mark.parametrize("act_order", [False, True])
def test_what_saw_nothing_is_rounded_to_nearest(act_order: bool) -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(4))
    grid = Grid(4, 64)
    nearest = round_to_nearest(weight, grid)
    for inputs in (torch.empty(0, 256), torch.zeros(9, 256)):
        nothing = prepare_low_rank(inputs, carried_together(grid, 256), act_order=act_order)
        solved = solve(weight, nothing, grid, search=False)
        assert torch.equal(solved.levels, nearest.levels)


def test_what_is_singular_is_damped_until_it_works() -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(40, 1, generator=generator) @ torch.randn(1, 1024, generator=generator)
    weight = torch.randn(16, 1024, generator=generator)
    for scale in (1e-15, 1.0, 1e12):
        for damp in (0.0, 1e-12, 0.01):
            found = prepare_low_rank(inputs * scale, 512, damp=damp)
            solved = solve(weight, found, Grid(4)).dequantize()
            assert torch.isfinite(solved).all()
            error, plain = (
                float(((x - weight) @ inputs.T).square().sum())
                for x in (solved, round_to_nearest(weight, Grid(4)).dequantize())
            )
            assert error < 0.5 * plain
