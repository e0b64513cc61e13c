"""The search: within the budget, close to the best that there is, the same every time."""

import random
import time
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.recipes.search import Choice, Search

Units = Sequence[Sequence[Choice]]


def bytes_of(units: Units, chosen: Sequence[int]) -> int:
    return sum(choices[i].n_bytes for choices, i in zip(units, chosen, strict=True))


def loss_of(units: Units, chosen: Sequence[int]) -> float:
    return sum(choices[i].loss for choices, i in zip(units, chosen, strict=True))


def units_of(sizes: Sequence[Sequence[tuple[int, float]]]) -> list[list[Choice]]:
    return [[Choice(f"{n}", n_bytes, loss) for n, (n_bytes, loss) in enumerate(u)] for u in sizes]


CHOICES = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0, 100, allow_nan=False, width=32)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)  # time: no limit
@given(st.lists(CHOICES, min_size=1, max_size=5), st.integers(0, 60))
def test_no_choice_is_better_by_more_than_one_step(
    sizes: list[list[tuple[int, float]]], more: int
) -> None:
    """All choices of small problems are tried.

    The relaxation's bound: what stands between the search and the best is less than the step that
    the budget cut, which is at most the largest difference of losses within one unit.
    """
    units = units_of(sizes)
    search = Search(units)
    budget = search.smallest + more
    chosen = search.choose(budget)
    assert bytes_of(units, chosen) <= budget
    every = product(*(range(len(choices)) for choices in units))
    best = min(loss_of(units, c) for c in every if bytes_of(units, c) <= budget)
    span = max(max(c.loss for c in u) - min(c.loss for c in u) for u in units)
    assert best - 1e-9 <= loss_of(units, chosen) <= best + span + 1e-9


def model_like(n_layers: int, seed: int) -> list[list[Choice]]:
    """Units with the bits of llama.cpp's types and losses that fall fourfold per bit."""
    generator = random.Random(seed)
    bits = (2.0625, 2.3125, 2.5625, 2.625, 3.0625, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5, 16.0)
    units = []
    for _ in range(n_layers):
        for elements in (37_748_736, 6_291_456, 6_291_456, 37_748_736, *[805_306_368] * 3):
            sensitivity = generator.uniform(0.1, 10)
            units.append([Choice(str(b), int(elements * b / 8), sensitivity * 4**-b) for b in bits])
    return units


@pytest.mark.parametrize("bits", [2.3, 3.1, 4.25, 7.0, 15.0])
def test_what_is_left_is_less_than_any_step(bits: float) -> None:
    units = model_like(8, seed=1)
    search = Search(units)
    elements = sum(choices[-1].n_bytes for choices in units) // 2
    budget = int(elements * bits / 8)
    chosen = search.choose(budget)
    left = budget - bytes_of(units, chosen)
    steps = [
        after.n_bytes - choices[i].n_bytes
        for choices, i in zip(units, chosen, strict=True)
        for after in choices[i + 1 :]
    ]
    assert 0 <= left < min(steps)


def test_it_is_better_than_one_type_for_all() -> None:
    units = model_like(8, seed=2)
    search = Search(units)
    for n in range(len(units[0])):
        uniform = [n] * len(units)
        chosen = search.choose(bytes_of(units, uniform))
        assert loss_of(units, chosen) <= loss_of(units, uniform)
    assert loss_of(units, search.choose(bytes_of(units, [5] * len(units)))) < 0.9 * loss_of(
        units, [5] * len(units)
    )


def test_all_and_nothing() -> None:
    units = model_like(2, seed=3)
    search = Search(units)
    assert search.choose(search.smallest) == (0,) * len(units)
    assert search.choose(search.largest) == (11,) * len(units)
    assert search.choose(10 * search.largest) == (11,) * len(units)
    with pytest.raises(ValueError, match="smallest"):
        search.choose(search.smallest - 1)


def test_of_equals_the_first_is_chosen() -> None:
    units = units_of([[(1, 1.0), (2, 0.5), (2, 0.5), (3, 0.5)]] * 3)
    assert Search(units).choose(4) == (1, 0, 0)


def test_an_exchange_pays() -> None:
    """Steps by what a byte saves would take the first unit, and then nothing else fits."""
    units = units_of([[(0, 10.0), (6, 0.0)], [(0, 14.0), (10, 0.0)]])
    assert Search(units).choose(10) == (0, 1)


def test_a_large_model_takes_no_time() -> None:
    """Mixtral-8x22B has 394 of these units; the search itself takes a twentieth of this."""
    units = model_like(56, seed=4)
    begun = time.process_time()  # time: bounded from above, and far away
    search = Search(units)
    budget = (search.smallest + search.largest) // 3
    chosen = search.choose(budget)
    assert time.process_time() - begun < 2  # time: it takes a twentieth
    assert bytes_of(units, chosen) <= budget
    assert chosen == Search(units).choose(budget)
