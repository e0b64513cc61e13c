"""The angles of rotary attention."""

import torch
from torch import Tensor

from quantkit.families.model import Rope


def rotary_angles(rope: Rope, head_dim: int, context: int) -> Tensor:
    """Angles of rotary attention over a text of ``context`` tokens: shape (context, head_dim / 2).

    Source: ``modeling_rope_utils.py`` of transformers. "dynamic" scaling is none within the
    trained length, beyond which `Forward` does not go.
    """
    half = head_dim // 2
    frequencies = rope.theta ** -(torch.arange(half, dtype=torch.float64) / half)
    is_long = rope.original_context is not None and context > rope.original_context
    divisors = rope.long_divisors if rope.long_divisors and is_long else rope.divisors
    if divisors:
        frequencies /= torch.tensor(divisors, dtype=torch.float64)
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies).float()
