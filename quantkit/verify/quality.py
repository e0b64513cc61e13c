"""Whether an artifact is as close to its reference as a healthy one of its quant."""

from dataclasses import dataclass
from typing import Any

from quantkit.core.profiles import load_profile
from quantkit.verify.divergence import Measures
from quantkit.verify.subjects import Subject, is_quantized

_SMALL = 100_000_000  # parameters; below, the limits measured on the tiny checkpoints hold


@dataclass(frozen=True, slots=True)
class Limits:
    """What a healthy build stays within; ``basis`` says where the figures come from."""

    kld: float
    same_top: float
    basis: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason`` is ``healthy``, or one sentence on what is wrong or was not judged."""

    ok: bool
    reason: str
    limits: Limits | None


def find_limits(quant: str | None, n_parameters: int) -> Limits | None:
    """The limits of a quant for a model of this size; None where none are known."""
    row: dict[str, Any] = load_profile("quality.toml").get(quant or "", {})
    kind = "small" if n_parameters < _SMALL else "large"
    limits = row.get(kind)
    if limits is None:
        return None
    basis = load_profile("quality.toml")["basis"][kind]
    return Limits(limits["kld"], limits["same_top"], basis)


def judge(
    subject: Subject, reference: Subject, measures: Measures, *, is_reference: bool
) -> Verdict:
    """Judge an artifact by its mean KL divergence and its agreement on the top token.

    Both limits allow three standard errors, so that a short text alone fails nothing.
    """
    if is_reference:
        return Verdict(ok=True, reason="reference", limits=None)
    limits = find_limits(subject.quant, reference.n_parameters)
    if limits is None:
        name = subject.quant or "an unknown quant"
        return Verdict(ok=True, reason=f"measured; no limits are known for {name}.", limits=None)
    allowance = 0.0
    if is_quantized(reference):
        # Its own error adds to the artifact's: distances add at most.
        own = find_limits(reference.quant, reference.n_parameters)
        allowance = own.kld if own else 0.0
    faults = []
    if measures.kld - 3 * measures.kld_pm > limits.kld + allowance:
        faults.append(f"its mean KLD {measures.kld:.3g} is above {limits.kld + allowance:.3g}")
    if measures.same_top + 3 * measures.same_top_pm < limits.same_top and not allowance:
        faults.append(
            f"its top token agrees in {measures.same_top:.1%}, below {limits.same_top:.1%}"
        )
    if not faults:
        return Verdict(ok=True, reason="healthy", limits=limits)
    why = " and ".join(faults)
    sentence = f"{why[0].upper()}{why[1:]}, more than a healthy {subject.quant} loses."
    return Verdict(ok=False, reason=sentence, limits=limits)
