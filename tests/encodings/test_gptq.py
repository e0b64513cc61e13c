"""The solver: against auto-gptq's own, against rounding to nearest, and at its limits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quantkit.encodings.compensation import factorize, prepare
from quantkit.encodings.gptq import Grid, Rounded, fit, solve
from tests.encodings.random_layers import COUNT, Layer, random_layers
from tests.encodings.rounding import output_error, round_to_nearest

REFERENCE = json.loads((Path(__file__).parent / "gptq_reference.json").read_text())["layers"]


def error_of(layer: Layer, *, search: bool) -> float:
    weight, moment = torch.from_numpy(layer.weight), torch.from_numpy(layer.moment)
    rounded = solve(
        weight,
        prepare(moment.clone(), act_order=layer.act_order),
        Grid(layer.bits, layer.group_size, layer.symmetric),
        search=search,
    )
    return output_error(weight, rounded.dequantize(), moment)


def test_no_layer_is_worse_than_auto_gptqs() -> None:
    ratios = []
    for layer, reference in zip(random_layers(), REFERENCE, strict=True):
        assert layer.settings.items() <= reference.items()
        # The better of its two ways, with its own search ("mse") and without.
        theirs = min(reference["error"], reference["error_with_mse"])
        ratios.append(error_of(layer, search=True) / theirs)
    assert len(ratios) == COUNT
    assert max(ratios) <= 1.00, ratios


def test_without_a_search_it_is_auto_gptqs_algorithm() -> None:
    """But for scales that are rounded to float16 before they are used, not afterwards.

    And but for groups narrower than a block, which auto-gptq fits to weights that the errors of
    their own block have not reached yet.
    """
    compared = 0
    for layer, reference in zip(random_layers(), REFERENCE, strict=True):
        if layer.act_order or layer.group_size in (-1, 128):
            assert error_of(layer, search=False) == pytest.approx(reference["error"], rel=0.01)
            compared += 1
    assert compared >= COUNT // 2


def test_the_factor_is_the_moments() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((2000, 700)).astype(np.float32))
    moment = x.T @ x / len(x)
    factor, costs = (part.double() for part in factorize(moment.flip(0, 1), 0.01))
    damped = moment.double() + 0.01 * torch.eye(700)
    assert (factor.tril(-1) == 0).all()
    assert (factor.diagonal() == 1).all()
    assert torch.allclose(factor * costs @ factor.T, damped, atol=1e-4)


def by_inverse(weight: torch.Tensor, moment: torch.Tensor, grid: Grid) -> torch.Tensor:
    """GPTQ as it was published: what is still free moves at once, by the inverse, in float64.

    With one scale per row, of its full range.
    """
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(len(moment))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    work = weight.double().clone()
    scales, zeros = (x[0].double() for x in fit(weight.T[None], grid))
    chosen = torch.empty_like(work)
    for i in range(work.shape[1]):
        levels = (work[:, i] / scales).round().add(zeros).clamp(0, grid.top)
        chosen[:, i] = (levels - zeros) * scales
        error = (work[:, i] - chosen[:, i]) / upper[i, i]
        work[:, i:] -= error[:, None] * upper[i, i:]
    return chosen


def test_it_rounds_as_with_the_inverse() -> None:
    """But for weights between two levels, which the last bits of float32 decide."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((900, 50)) @ rng.standard_normal((50, 320))
    x += rng.standard_normal(x.shape)
    moment = torch.from_numpy((x.T @ x / 900).astype(np.float32))
    weight = torch.from_numpy((rng.standard_normal((64, 320)) * 0.1).astype(np.float32))
    grid = Grid(4, -1)
    ours = solve(weight, prepare(moment.clone()), grid, search=False).dequantize()
    theirs = by_inverse(weight, moment, grid).float()
    assert (torch.isclose(ours, theirs, atol=1e-6)).float().mean() > 0.97
    errors = [float((d @ moment * d).sum()) for d in (ours - weight, theirs - weight)]
    assert errors[0] == pytest.approx(errors[1], rel=0.005)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 96, 128, 192, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_setting_beats_rounding(
    bits: int, group_size: int, symmetric: bool, act_order: bool
) -> None:
    columns = 384
    rng = np.random.default_rng(5)
    weight = torch.from_numpy((rng.standard_normal((48, columns)) * 0.1).astype(np.float32))
    x = rng.standard_normal((1000, 60)) @ rng.standard_normal((60, columns))
    x += rng.standard_normal(x.shape)
    moment = torch.from_numpy((x.T @ x / 1000).astype(np.float32))
    grid = Grid(bits, group_size, symmetric)
    solved = solve(weight, prepare(moment.clone(), act_order=act_order), grid)
    assert solved.levels.dtype == torch.uint8
    assert int(solved.levels.max()) <= grid.top
    assert solved.scales.shape == (48, columns // grid.width(columns))
    assert (solved.scales == solved.scales.half().float()).all()
    assert ((solved.zeros >= 1) & (solved.zeros <= grid.top)).all()
    assert (solved.zeros == solved.zeros.round()).all()
    nearest = round_to_nearest(weight, grid)
    better, plain = (output_error(weight, r.dequantize(), moment) for r in (solved, nearest))
    assert better < 0.6 * plain


def test_unrelated_inputs_leave_nothing_to_make_up_for() -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    solved = solve(weight, prepare(torch.eye(128)), Grid(4, 64), search=False)
    nearest = round_to_nearest(weight, Grid(4, 64))
    assert torch.equal(solved.levels, nearest.levels)
    assert torch.equal(solved.scales, nearest.scales)


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_were_never_seen_are_rounded_to_nearest(act_order: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(32, 128, generator=generator)
    for seen in (0, 64):
        x = torch.randn(500, 128, generator=generator)
        x[:, seen:] = 0
        solved = solve(
            weight, prepare(x.T @ x, act_order=act_order), Grid(4, 64), search=False
        ).dequantize()
        nearest = round_to_nearest(weight, Grid(4, 64)).dequantize()
        assert torch.equal(solved[:, seen:], nearest[:, seen:])
        assert torch.isfinite(solved).all()


def test_a_singular_moment_is_damped_until_it_works() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 256, generator=generator) * 1e3
    weight = torch.randn(16, 256, generator=generator)
    moment = x.T @ x
    for damp in (0.0, 1e-12, 0.01):
        solved = solve(weight, prepare(moment.clone(), damp=damp), Grid(4)).dequantize()
        assert torch.isfinite(solved).all()
    nearest = round_to_nearest(weight, Grid(4)).dequantize()
    assert output_error(weight, solved, moment) < 0.5 * output_error(weight, nearest, moment)
    nonsense = torch.full((256, 256), torch.nan)
    nonsense.diagonal().fill_(1.0)
    assert torch.isfinite(solve(weight, prepare(nonsense), Grid(4)).dequantize()).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_odd_groups(symmetric: bool) -> None:
    """All zeros, all of one sign, one outlier, constants, numbers at float16's ends."""
    rows = torch.stack(
        [
            torch.zeros(32),
            torch.linspace(0.1, 1, 32),
            -torch.linspace(0.1, 1, 32),
            torch.eye(32)[5] * 100,
            torch.full((32,), 0.3),
            torch.full((32,), 1e-9),
            torch.linspace(-3e5, 3e5, 32),
        ]
    )
    grid = Grid(4, 32, symmetric)
    for costs in (None, torch.ones(32)):
        scales, zeros = fit(rows.T[None], grid, costs)
        assert (scales > 0).all()
        assert (scales == scales.half().float()).all()
        assert ((zeros >= 1) & (zeros <= 15)).all()
    nearest = round_to_nearest(rows, grid).dequantize()
    assert torch.isfinite(nearest).all()
    assert (nearest[0] == 0).all()
    step = 1 / 7 if symmetric else 1 / 14
    assert ((nearest[1] - rows[1]).abs() <= 0.51 * step).all() or symmetric
    assert ((nearest[2] - rows[2]).abs() <= step).all()


def test_dequantizing() -> None:
    levels = torch.tensor([[0, 3, 1, 2]], dtype=torch.uint8)
    rounded = Rounded(levels, torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 2.0]]))
    assert rounded.dequantize().tolist() == [[-0.5, 1.0, -2.0, 0.0]]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compiled_loops_round_as_pytorchs_do(symmetric: bool, act_order: bool) -> None:
    """A matrix of whole vectors of rows takes the first, one row more has it take the others."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(97, 640, generator=generator)
    mixed = torch.randn(640, 640, generator=generator)
    inputs = torch.randn(900, 640, generator=generator) @ mixed
    moment = inputs.T @ inputs / len(inputs)
    compensation = prepare(moment.clone(), act_order=act_order)
    grid = Grid(4, 128, symmetric)
    compiled = solve(weight[:96], compensation, grid)
    plain = solve(weight, compensation, grid)
    same = (compiled.levels == plain.levels[:96]).float().mean()
    assert same > 0.99  # a sum in another order moves what lies between two levels
    errors = [output_error(weight[:96], x.dequantize()[:96], moment) for x in (compiled, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=0.002)
