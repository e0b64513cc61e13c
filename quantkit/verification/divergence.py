"""How far one model's predictions are from another's: pure functions of logits.

The definitions are those of llama.cpp's ``tools/perplexity/perplexity.cpp`` (its
``--kl-divergence``), so that figures can be set beside published ones. The reference's
log-probabilities are kept there, and here, as 16-bit steps between the smallest and the largest
logit of a position (none more than 16 below the largest); that rounding is part of the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_STEPS = 65535
_WINDOW = 16.0  # logits further below the largest count as this far below
_LEAST_LOG_P = -16.0  # the reference's tokens below e**-16 count nothing
_PREFIX = 4  # 16-bit words before a row's tokens: its scale and its smallest log-probability
_BLOCK = 32  # positions worked on at a time, which bounds memory


def row_words(n_vocab: int) -> int:
    """16-bit words of one position in a reference file: a prefix, the tokens, one for padding."""
    return 2 * ((n_vocab + 1) // 2) + _PREFIX


def pack_log_probs(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Log-probabilities in 16-bit steps.

    Args:
        logits: shape (positions, vocabulary).

    Returns:
        Shape (positions, ``row_words``); a row starts with two float32, the step and the
        log-probability of step 0.

    """
    n, n_vocab = logits.shape
    packed = np.zeros((n, row_words(n_vocab)), np.uint16)
    top = logits.max(axis=1)
    low = np.maximum(logits.min(axis=1), top - np.float32(_WINDOW))
    prefix = np.empty((n, 2), np.float32)
    prefix[:, 0] = (top - low) / np.float32(_STEPS)
    prefix[:, 1] = low - top - _log_sum_exp(logits, top)
    packed[:, :_PREFIX] = prefix.view(np.uint16)
    scale = prefix[:, 0]
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    steps = np.rint(np.maximum(logits - low[:, None], 0) * inverse[:, None])
    packed[:, _PREFIX : _PREFIX + n_vocab] = np.minimum(steps, _STEPS).astype(np.uint16)
    return packed


def unpack_log_probs(packed: NDArray[np.uint16], n_vocab: int) -> NDArray[np.float32]:
    """What ``pack_log_probs`` packed: shape (positions, vocabulary)."""
    prefix = np.ascontiguousarray(packed[:, :_PREFIX]).view(np.float32)
    steps = packed[:, _PREFIX : _PREFIX + n_vocab].astype(np.float32)
    log_p: NDArray[np.float32] = prefix[:, :1] * steps + prefix[:, 1:]
    return log_p


def _log_sum_exp(logits: NDArray[np.float32], top: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logarithm of the sum of e**(logit - top) of each row."""
    total: NDArray[np.float64] = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    return np.log(total).astype(np.float32)


@dataclass(slots=True)
class Tally:
    """What every scored position gave, in order."""

    nll: list[NDArray[np.float32]] = field(default_factory=list)
    nll_reference: list[NDArray[np.float32]] = field(default_factory=list)
    kld: list[NDArray[np.float64]] = field(default_factory=list)
    same_top: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(
        self,
        logits: NDArray[np.float32],
        packed: NDArray[np.uint16],
        targets: NDArray[np.integer[Any]],
    ) -> None:
        """Score positions against the reference.

        Args:
            logits: shape (positions, vocabulary).
            packed: the reference's, of the same positions.
            targets: the token that follows each position in the text.

        """
        for start in range(0, len(targets), _BLOCK):
            block = slice(start, start + _BLOCK)
            self._add_block(logits[block], packed[block], targets[block])

    def _add_block(
        self,
        logits: NDArray[np.float32],
        packed: NDArray[np.uint16],
        targets: NDArray[np.integer[Any]],
    ) -> None:
        rows = np.arange(len(targets))
        top = logits.max(axis=1)
        normalizer = top + _log_sum_exp(logits, top)
        reference = unpack_log_probs(packed, logits.shape[1])
        self.nll.append(normalizer - logits[rows, targets])
        self.nll_reference.append(-reference[rows, targets])
        # A step of the packed form is rounded, so of equal ones the first is the top, as there.
        self.same_top.append(logits.argmax(axis=1) == reference.argmax(axis=1))
        gap = reference - logits + normalizer[:, None]
        terms = np.where(reference > _LEAST_LOG_P, np.exp(reference) * gap, np.float32(0))
        self.kld.append(terms.sum(axis=1, dtype=np.float64))

    def measures(self) -> "Measures":
        """The figures of all positions so far."""
        return _measure(
            np.concatenate(self.nll).astype(np.float64),
            np.concatenate(self.nll_reference).astype(np.float64),
            np.concatenate(self.kld),
            np.concatenate(self.same_top),
        )


@dataclass(frozen=True, slots=True)
class Measures:
    """How a model predicts a text, and how far that is from the reference.

    Every ``_pm`` is one standard error of the figure before it. Perplexities are per token, KL
    divergences in nats, ``same_top`` and ``rms_dp`` shares (not percent); ``kld_percentiles`` goes
    with ``PERCENTILES``. ``rms_dp`` is the root mean square of the change in the probability of
    the token that follows.
    """

    n_tokens: int
    ppl: float
    ppl_pm: float
    ppl_reference: float
    ppl_reference_pm: float
    ppl_ratio: float
    ppl_ratio_pm: float
    kld: float
    kld_pm: float
    kld_percentiles: tuple[float, ...]
    kld_max: float
    same_top: float
    same_top_pm: float
    rms_dp: float
    rms_dp_pm: float
    mean_dp: float


def _measure(
    nll: NDArray[np.float64],
    nll_reference: NDArray[np.float64],
    kld: NDArray[np.float64],
    same_top: NDArray[np.bool_],
) -> Measures:
    n = len(nll)
    log_ppl, log_ppl_pm = mean_and_error(nll)
    log_reference, log_reference_pm = mean_and_error(nll_reference)
    log_ratio, log_ratio_pm = mean_and_error(nll - nll_reference)
    mean_kld, kld_pm = mean_and_error(kld)
    dp = np.exp(-nll) - np.exp(-nll_reference)
    square, square_pm = mean_and_error(dp * dp)
    rms = sqrt(square)
    agreement = float(same_top.mean())
    ordered = np.sort(kld.astype(np.float32))
    return Measures(
        n_tokens=n,
        ppl=exp(log_ppl),
        ppl_pm=exp(log_ppl) * log_ppl_pm,
        ppl_reference=exp(log_reference),
        ppl_reference_pm=exp(log_reference) * log_reference_pm,
        ppl_ratio=exp(log_ratio),
        ppl_ratio_pm=exp(log_ratio) * log_ratio_pm,
        kld=mean_kld,
        kld_pm=kld_pm,
        kld_percentiles=tuple(percentile(ordered, p / 100) for p in PERCENTILES),
        kld_max=float(ordered[-1]),
        same_top=agreement,
        same_top_pm=sqrt(agreement * (1 - agreement) / max(1, n - 1)),
        rms_dp=rms,
        rms_dp_pm=0.5 / rms * square_pm if rms else 0.0,
        mean_dp=float(dp.mean()),
    )


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and its standard error, as if the values were independent draws."""
    n = len(values)
    mean = float(values.mean())
    variance = float(np.square(values - mean).mean())
    return mean, sqrt(variance / (n - 1)) if n > 1 else 0.0


def percentile(ordered: Sequence[float] | NDArray[np.float32], fraction: float) -> float:
    """The value below which ``fraction`` of the ascending values lie, interpolated linearly."""
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    share = place - below
    return float((1 - share) * ordered[below] + share * ordered[above])
