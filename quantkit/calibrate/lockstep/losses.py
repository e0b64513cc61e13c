"""How well a text was predicted, token by token, and arithmetic that says so exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def losses_of(logits: Tensor, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the log-probability of each token in the second half of a chunk, 1-D."""
    first = len(tokens) // 2
    scores = torch.log_softmax(logits[first:-1], -1)
    wanted = torch.from_numpy(tokens[first + 1 :]).to(logits.device)
    found: NDArray[np.float64] = -scores.gather(-1, wanted[:, None]).double().view(-1).cpu().numpy()
    return found


@contextmanager
def exact_math() -> Iterator[None]:
    """No gradients, and float32 that is float32 on a GPU too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
