"""What GPTQ is held against: rounding to nearest, and the error of a layer's output."""

import torch
from torch import Tensor

from quantkit.encodings.gptq import Grid, Rounded, fit


def round_to_nearest(weight: Tensor, grid: Grid) -> Rounded:
    """Every weight at the nearest level of its group's full range: what GPTQ improves on."""
    rows, columns = weight.shape
    groups = weight.float().T.reshape(-1, grid.width(columns), rows)
    scales, zeros = fit(groups, grid)
    levels = (groups / scales[:, None]).round_().add_(zeros[:, None]).clamp_(0, grid.top)
    levels = levels.view(columns, rows).T.to(torch.uint8)
    return Rounded(levels.contiguous(), scales.T.contiguous(), zeros.T.contiguous())


def output_error(weight: Tensor, rounded: Tensor, moment: Tensor) -> float:
    """The squared error of the output per token, summed over outputs, for a mean second moment."""
    change = rounded.double() - weight.double()
    return float(((change @ moment.double()) * change).sum())
