"""A matrix that few tokens went into is solved by tokens, and rounded as by its second moment."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from quantkit.calibration import quantizer as module
from quantkit.calibration.quantizer import Quantizer, Recipe
from quantkit.calibration.statistics import SecondMoment
from quantkit.encodings.compensation import DenseCompensation, prepare
from quantkit.encodings.gptq import Grid, Rounded, solve
from tests.encodings.rounding import output_error

COLUMNS = 1024


def batches(*lengths: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Inputs in parts, of which the last is borrowed from other experts."""
    generator = torch.Generator().manual_seed(8)
    for number, length in enumerate(lengths):
        x = torch.randn(length, COLUMNS, generator=generator)
        x += torch.randn(length, 1, generator=generator)
        yield x, 0.25 if number == len(lengths) - 1 else 1.0


def rounded(recipe: Recipe, *lengths: int) -> tuple[Rounded, torch.Tensor]:
    kept: list[Rounded] = []
    quantizer = Quantizer(
        recipe, torch.device("cpu"), {"up"}, lambda _name, _expert, _rows, one: kept.append(one)
    )
    weight = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(9))
    quantizer.take_in(batches(*lengths), COLUMNS, "up")
    quantizer.replace("up", None, weight)
    return kept[0], weight


@pytest.mark.parametrize("lengths", [(200, 56), (256,), (100,), ()])
def test_few_tokens_need_no_second_moment(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = SecondMoment(COLUMNS, torch.device("cpu"))
    for x, share in batches(*lengths):
        moment.add(x, share)
    mean = moment.mean()

    def refuse(*_: object, **__: object) -> DenseCompensation:
        raise AssertionError("a matrix of all columns was made")

    monkeypatch.setattr(module, "prepare", refuse)
    recipe = Recipe(Grid(4))
    ours, weight = rounded(recipe, *lengths)
    whole = solve(weight, prepare(mean.clone(), act_order=True), recipe.grid)
    assert (ours.levels == whole.levels).float().mean() > 0.95
    errors = [output_error(weight, x.dequantize(), mean) for x in (ours, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "lengths"),
    [
        (Recipe(Grid(4)), (200, 57)),
        (Recipe(Grid(4, 1024), act_order=False), (100,)),
        (Recipe(Grid(4, -1), act_order=False), (100,)),
    ],
)
def test_many_tokens_and_wide_groups_need_one(
    recipe: Recipe, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def watched(moment: torch.Tensor, **settings: Any) -> DenseCompensation:
        made.append(moment.shape)
        return prepare(moment, **settings)

    monkeypatch.setattr(module, "prepare", watched)
    rounded(recipe, *lengths)
    assert made == [(COLUMNS, COLUMNS)]
