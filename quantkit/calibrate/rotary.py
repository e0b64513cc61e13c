"""The angles of rotary attention, with every way to stretch the context that llama.cpp knows."""

import math

import torch
from torch import Tensor

from quantkit.families.decoder import llama3_rope_factors
from quantkit.families.model import Hyperparameters


def rotary_angles(hparams: Hyperparameters, context: int) -> tuple[Tensor, float]:
    """Angles of rotary attention, shape (context, head_dim / 2), and a factor for sine and cosine.

    Source: ``modeling_rope_utils.py`` of transformers. "dynamic" scaling is none within the
    trained length, beyond which `Forward` does not go.
    """
    rope, half = hparams.rope, hparams.head_dim // 2
    scaling = rope.scaling
    kind = str(scaling.get("rope_type", "default")).lower()
    frequencies = rope.theta ** -(torch.arange(half, dtype=torch.float64) / half)
    scale = 1.0
    if kind == "linear":
        frequencies /= float(scaling.get("factor") or 1.0)
    elif kind == "llama3":
        frequencies /= torch.tensor(llama3_rope_factors(hparams), dtype=torch.float64)
    elif kind == "yarn":
        frequencies, scale = _yarn(frequencies, hparams)
    positions = torch.arange(context, dtype=torch.float64)
    return torch.outer(positions, frequencies).float(), scale


def _yarn(frequencies: Tensor, hparams: Hyperparameters) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023): slow rotations are stretched, fast ones kept, a ramp between."""
    scaling, theta, dim = hparams.rope.scaling, hparams.rope.theta, hparams.head_dim
    trained = scaling.get("original_max_position_embeddings") or hparams.max_position_embeddings
    factor = scaling.get("factor") or hparams.max_position_embeddings / trained

    def dimension(turns: float) -> float:
        """The dimension that turns so often over the trained length."""
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(scaling.get("beta_fast") or 32)
    high = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    scale = scaling.get("attention_factor")
    if scale is None:
        m, m_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        scale = magnitude(m) / magnitude(m_all) if m and m_all else magnitude(1.0)
    return frequencies * (stretched / factor + 1 - stretched), float(scale)
