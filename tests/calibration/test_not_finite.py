"""Activations that nothing can be solved with are refused before it is tried: it never ends."""

import pytest
import torch

from quantkit.calibration.quantizer import Quantizer, Recipe
from quantkit.core.errors import CalibrationError
from quantkit.encodings.gptq import Grid


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_gptq_refuses_what_is_not_finite(value: float) -> None:
    recipe = Recipe(Grid(4, 32, True))
    quantizer = Quantizer(recipe, torch.device("cpu"), {"attn_q"}, lambda *_: None)
    inputs = torch.ones(16, 64)
    inputs[3, 5] = value  # 1e30: its square is infinite
    with pytest.raises(CalibrationError, match="not finite in what goes into attn_q"):
        quantizer.take_in([(inputs, 1.0)], 64, "attn_q")
