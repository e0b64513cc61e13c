"""Activations that nothing can be solved with are refused before it is tried: it never ends."""

import pytest
import torch

from quantkit.calibrate.forward import Site
from quantkit.calibrate.quantizer import Quantizer, Recipe
from quantkit.core.errors import CalibrationError
from quantkit.encodings.gptq import Grid


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_gptq_refuses_what_is_not_finite(value: float) -> None:
    recipe = Recipe(Grid(4, 32, True))
    quantizer = Quantizer(recipe, torch.device("cpu"), lambda _site, _role, _rounded: None)
    inputs = torch.ones(16, 64)
    inputs[3, 5] = value  # 1e30: its square is infinite
    site = Site(2, ("attn_q", "attn_k"))
    quantizer.observe(site, inputs, 1.0)
    with pytest.raises(CalibrationError, match="what goes into attn_q and attn_k of layer 2"):
        quantizer.replace(site, (torch.ones(32, 64), torch.ones(32, 64)))
