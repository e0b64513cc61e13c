"""How well a text was predicted, token by token, and arithmetic that says so exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SCORED_AT_ONCE = 32  # tokens


def losses_of(logits: Tensor, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the log-probability of each token in the second half of a chunk, 1-D.

    Args:
        logits: of all tokens, or of the second half's.
        tokens: all of the chunk.

    """
    first = scored_from(len(tokens))
    wanted = torch.from_numpy(tokens[first + 1 :]).to(logits.device)
    losses = [
        -torch.log_softmax(some, -1).gather(-1, target[:, None])
        for some, target in zip(
            logits[first - len(tokens) : -1].split(_SCORED_AT_ONCE),
            wanted.split(_SCORED_AT_ONCE),
            strict=True,
        )
    ]
    found: NDArray[np.float64] = torch.cat(losses).double().view(-1).cpu().numpy()
    return found


def scored_from(context: int) -> int:
    """The first token of a chunk whose logits are looked at."""
    return context // 2


@contextmanager
def exact_math() -> Iterator[None]:
    """No gradients, and float32 that is float32 on a GPU too."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
