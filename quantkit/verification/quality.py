"""Whether an artifact is as close to its reference as a healthy one of its quant.

Predictions alone cannot tell everything: an expert that a text hardly uses may be broken, and at
two bits a norm that is a tenth too large drowns in the rounding. So a few rows of every tensor and
the settings in the header are compared with the reference's as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import acos, cos, pi, sqrt
from typing import Any

from quantkit.checkpoint.gguf import read_header
from quantkit.core.profiles import load_profile
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.planning.quants import all_quants
from quantkit.verification.divergence import Measures
from quantkit.verification.embeddings import Cosines
from quantkit.verification.layers import WeightError, weight_errors
from quantkit.verification.subjects import Subject, is_quantized

_ROWS = 32  # of each tensor or expert: an error of all of it shows in any few rows
_AS_IT_IS = "as it is"
# A row is rounded worse than the others of its matrix at times; not so badly that the row is gone.
_ROOM_OF_A_ROW, _MOST_OF_A_ROW = 3.0, 1.1
_SMALL = 100_000_000  # parameters; below, the limits measured on the tiny checkpoints hold
# A figure is beyond a limit when it is so by more than three standard errors, which count positions
# of one window as independent, though they are not quite. One window of 512 tokens scores 255.
_ERRORS = 3
_FEWEST_POSITIONS = 250


@dataclass(frozen=True, slots=True)
class Limits:
    """What a healthy build stays within; ``basis`` says where the figures come from."""

    kld: float
    same_top: float
    basis: str


@dataclass(frozen=True, slots=True)
class CosineLimit:
    """The least mean cosine of a healthy build's embeddings; ``basis`` as in `Limits`."""

    cosine: float
    basis: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` is ``healthy``, or one sentence on what is wrong or was not judged.

    ``judged`` is False where no limits are known, or the text was too short to tell.
    """

    ok: bool
    reason: str
    limits: Limits | CosineLimit | None
    judged: bool = True


def find_limits(quant: str | None, n_parameters: int) -> Limits | None:
    """The limits of a quant for a model of this size; None where none are known."""
    profile = load_profile("quality.toml")
    row: dict[str, Any] = profile.get(_mixture_of(quant), {})
    kind = "small" if n_parameters < _SMALL else "large"
    basis = profile["basis"][kind]
    if kind not in row and "like" in row:
        basis = f"as for {row['like']}: {basis}"
        row = profile[row["like"]]
    limits = row.get(kind)
    return Limits(limits["kld"], limits["same_top"], basis) if limits else None


def find_cosine_limit(quant: str | None) -> CosineLimit | None:
    """The limit of a quant's embeddings, of a model of any size; None where none is known."""
    profile = load_profile("quality.toml")
    least = profile["cosine"].get(_mixture_of(quant))
    return CosineLimit(least, profile["basis"]["cosine"]) if least is not None else None


def _mixture_of(quant: str | None) -> str:
    """The name under which limits are kept: a variant rounds nothing more than its base does."""
    known = all_quants().get(quant or "")
    return known.mixture if known else quant or ""


def judge(
    subject: Subject,
    reference: Subject,
    measures: Measures | None,
    cosines: Cosines | None = None,
    *,
    is_reference: bool = False,
    translates: bool = False,
) -> Verdict:
    """Judge an artifact by its mean KL divergence, its agreement on the top token and its weights.

    One that embeds is judged by the mean cosine of its embeddings instead of its predictions. Of
    one with encoder and decoder (``translates``) only settings and weights are judged: what a
    decoder predicts of a text that its encoder has begun depends on what it was trained for, and
    no limits are known.

    Limits are widened by the measurement's own error. Where that is larger than the limit of the
    divergence, or next to nothing was measured, only what does not depend on it is judged. A
    quantized reference has an error of its own, which may add to the artifact's: then its limit is
    added too, and only settings and divergence are judged.

    Raises:
        CompareError: the two do not hold the same tensors.

    """
    if is_reference:
        return Verdict(ok=True, reason="reference", limits=None)
    if cosines is not None:
        return _judge_embeddings(subject, reference, cosines)
    limits = None if translates else find_limits(subject.quant, reference.n_parameters)
    faults = _settings_faults(subject, reference)
    exact = not is_quantized(reference)
    if exact:
        faults += _weight_faults(subject, reference)
    unsure = ""
    if limits is not None and measures is not None:
        own = None if exact else find_limits(reference.quant, reference.n_parameters)
        most = limits.kld + (own.kld if own else 0.0)
        least = limits.same_top if exact else 0.0
        beyond = _beyond(measures, most, least)
        if measures.n_tokens < _FEWEST_POSITIONS or not _decides(measures, most, beyond):
            unsure = (
                f"Too few windows to judge: mean KLD {measures.kld:.2g} \u00b1 "
                f"{measures.kld_pm:.1g} beside a limit of {most:.2g}; give a longer text, or more "
                "--chunks."
            )
        else:
            faults += beyond
    if faults:
        return Verdict(ok=False, reason=f"{_join(faults)}.", limits=limits)
    if translates:
        reason = "No limits are known for a decoder's predictions; settings and weights are sound."
        return Verdict(ok=True, reason=reason, limits=None, judged=False)
    if limits is None:
        return _unknown(subject)
    return Verdict(ok=True, reason=unsure or "healthy", limits=limits, judged=not unsure)


def _unknown(subject: Subject) -> Verdict:
    name = subject.quant or "an unknown quant"
    return Verdict(ok=True, reason=f"No limits are known for {name}.", limits=None, judged=False)


def _judge_embeddings(subject: Subject, reference: Subject, cosines: Cosines) -> Verdict:
    limit = find_cosine_limit(subject.quant)
    faults = _settings_faults(subject, reference)
    if not is_quantized(reference):
        faults += _weight_faults(subject, reference)
    # A quantized reference is off by an angle of its own, which may add to the artifact's.
    own = find_cosine_limit(reference.quant) if is_quantized(reference) else None
    if limit is not None and (own is not None or not is_quantized(reference)):
        angle = acos(limit.cosine) + (acos(own.cosine) if own else 0.0)
        least = cos(min(angle, pi))
        if not cosines.mean >= least:
            faults.append(
                f"the mean cosine of its embeddings with the reference's is {cosines.mean:.4f}, "
                f"below {least:.4f}"
            )
    if faults:
        return Verdict(ok=False, reason=f"{_join(faults)}.", limits=limit)
    return _unknown(subject) if limit is None else Verdict(ok=True, reason="healthy", limits=limit)


def _beyond(measures: Measures, most: float, least: float) -> list[str]:
    """What is worse than its limit by more than its error explains."""
    found = []
    kld_error = _ERRORS * measures.kld_pm
    if not measures.kld <= most + kld_error:
        found.append(f"its mean KLD {measures.kld:.3g} is above {most:.3g} (+ {kld_error:.2g})")
    # The error of a share at its limit: at 100 % the one measured would be 0.
    top_error = _ERRORS * sqrt(least * (1 - least) / max(1, measures.n_tokens - 1))
    if not measures.same_top >= least - top_error:
        found.append(
            f"its top token agrees in {measures.same_top:.1%}, below {least:.1%} "
            f"(- {top_error:.1%})"
        )
    return found


def _decides(measures: Measures, most: float, beyond: list[str]) -> bool:
    """Whether the text was long enough to tell twice the limit from the limit, or worse from it."""
    return bool(beyond) or _ERRORS * measures.kld_pm <= most


def _join(faults: list[str]) -> str:
    text = ", ".join(faults)
    return text[0].upper() + text[1:]


def _settings_faults(subject: Subject, reference: Subject) -> list[str]:
    """Hyperparameters in the header that are not the reference's."""
    ours, theirs = (read_header(s.gguf).metadata for s in (subject, reference))
    prefix = f"{theirs.get('general.architecture')}."
    return [
        f"its {key} is {ours.get(key)!r}, the reference's {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if key.startswith(prefix) and ours.get(key) != theirs.get(key)
    ]


def _weight_faults(subject: Subject, reference: Subject) -> list[str]:
    """The worst of the tensors that differ more than their encoding explains."""

    def encoded_as(error: WeightError) -> str:
        # An export holds in F16 what a folder's quant had rounded, and norms and routers in F32.
        is_rounded = subject.how != _AS_IT_IS and error.encoding == "F16"
        return subject.quant or "" if is_rounded else error.encoding

    return weight_faults(weight_errors(subject.gguf, reference.gguf, rows=_ROWS), encoded_as)


def weight_faults(
    errors: Iterable[WeightError],
    encoded_as: Callable[[WeightError], str] = lambda error: error.encoding,
    slack: float = 0.0,
    *,
    by_row: bool = False,
) -> list[str]:
    """The worst of the tensors that are further off than their encoding explains, in words.

    Args:
        errors: of the tensors.
        encoded_as: what a tensor was rounded to.
        slack: how much further off those may be that are rounded to blocks.
        by_row: judge the worst row of each, too. All of a matrix hides two rows that are swapped.

    """
    limits: dict[str, float] = load_profile("quality.toml")["weights"]

    def limit(error: WeightError) -> float:
        kind = encoded_as(error)
        return limits.get(kind, float("inf")) + (0.0 if kind in FLOAT_BYTES else slack)

    def row_limit(error: WeightError) -> float:
        return min(_MOST_OF_A_ROW, _ROOM_OF_A_ROW * limit(error))

    errors = list(errors)
    broken = [error for error in errors if not error.error <= limit(error)]
    if broken:
        worst = max(broken, key=lambda error: error.error)
        what, verb, off, more = "the weights", "are", worst.error, ""
    elif by_row and (broken := [e for e in errors if not e.row_error <= row_limit(e)]):
        worst = max(broken, key=lambda error: error.row_error)
        what, verb = f"row {worst.row} of the weights", "is"
        off, more = worst.row_error, "rows of "
    else:
        return []
    expert = f", expert {worst.expert}," if worst.expert is not None else ""
    others = f" (and {more}{len(broken) - 1} more)" if len(broken) > 1 else ""
    return [
        f"{what} of {worst.tensor}{expert} {verb} {off:.0%} off, more than {encoded_as(worst)} "
        f"explains{others}"
    ]
