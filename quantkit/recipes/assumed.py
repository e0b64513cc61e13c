"""Losses where nothing was measured: a stated default, from the names of tensors alone.

A tensor's error is that of normal rows in its encoding. Its sensitivity is that of its kind: what
a layer computes reaches the outputs through the residual stream beside all other layers, so each
has its share of one over the number of layers, however many weights it has. The kinds' figures are
means over the tiny models that the tests train (``profiles/recipes.toml`` says how they were
measured): they rank the kinds, and are no forecast of a real model's divergence.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from quantkit.core.profiles import load_profile
from quantkit.families.model import Facts, Target
from quantkit.planning.names import category_of
from quantkit.recipes.losses import Measured

BASIS = "nothing measured: errors of normal rows, sensitivities by kind of tensor"


@cache
def normal_errors() -> Mapping[str, float]:
    """Relative squared errors on normal rows by encoding, fewest bits first."""
    errors: Mapping[str, float] = load_profile("recipes.toml")["errors"]
    return errors


def assume(targets: Iterable[Target], arch: str, facts: Facts) -> Measured:
    """The default losses of some tensors, in every encoding that has a default error."""
    names = [target.name for target in targets]
    return Measured(
        arch=arch,
        sensitivities={name: _sensitivity(name, facts) for name in names},
        errors={(name, kind): error for name in names for kind, error in normal_errors().items()},
        basis=BASIS,
    )


def _sensitivity(name: str, facts: Facts) -> float:
    """The sensitivity of a tensor (nats per unit of relative error) by what its name says."""
    kinds: Mapping[str, float] = load_profile("recipes.toml")["sensitivities"]
    category = category_of(name)
    of_model = kinds[category] if category in kinds else kinds["other"]
    if category in ("output", "token_embd"):
        return of_model
    return of_model / max(facts.n_layers, 1)
