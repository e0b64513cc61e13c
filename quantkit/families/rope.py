"""Rotary embedding: what config.json asks for, as the numbers that it comes to.

The model is what transformers 5 computes (``modeling_rope_utils.py``, 5.23; 4.57 where it knows the
same keys). llama.cpp's architecture ``llama`` has keys for linear scaling and for the usual YaRN;
everything else is written as one divisor per frequency, which it reads too (``rope_freqs.weight``,
and a pair of such tensors for longrope). `docs/design.md` lists where the two versions differ.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.core.errors import CheckpointError
from quantkit.families.model import Rope

# What each type reads, beside its name and the base.
_READ = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "longrope": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "short_factor",
        "long_factor",
    },
    "proportional": {"factor"},
}
TYPES = tuple(_READ)
_OF_ALL = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
_NEVER = 1e30  # the divisor of a frequency that does not rotate; GGUF files hold no infinity


def read_rope(
    config: Mapping[str, Any], head_dim: int, context: int, theta: float
) -> tuple[Rope, tuple[str, ...]]:
    """The rotary embedding of a config, and remarks on what is not as it may seem.

    Args:
        config: config.json.
        head_dim: of attention; all of it rotates.
        context: ``max_position_embeddings``, which stands in for what is not said.
        theta: the base that the architecture assumes.

    Raises:
        CheckpointError: llama.cpp has no such scaling, or a number is missing or makes no sense.

    """
    place, scaling, remarks = _find(config)
    base = _first(scaling.get("rope_theta"), config.get("rope_theta"), theta)
    base = above_zero("rope_theta", base)
    kind = _kind(place, scaling)
    if kind != "default" and "factor" not in scaling and kind not in ("longrope", "proportional"):
        raise CheckpointError(
            f"config.json's {place} is {kind} without a factor; copy it from the original model."
        )
    part = _first(scaling.get("partial_rotary_factor"), config.get("partial_rotary_factor"), 1)
    if part != 1 and kind != "proportional":
        raise CheckpointError(
            f"config.json says partial_rotary_factor = {part!r}: only a part of each head rotates, "
            "which llama.cpp does not support for this architecture."
        )
    remarks += _twice(place, scaling, config, "rope_theta")
    remarks += _unread(place, kind, scaling)
    original = context
    if kind in ("llama3", "yarn", "longrope"):
        key = "original_max_position_embeddings"
        remarks += _twice(place, scaling, config, key, outer=True)
        original = _first(config.get(key), scaling.get(key), context)
        if not isinstance(original, int) or isinstance(original, bool) or original < 2:
            raise CheckpointError(f"config.json says {key} = {original!r}; it must be above 1.")
    match kind:
        case "linear":
            factor = above_zero("factor", scaling["factor"])
            divisors = (factor,) * (head_dim // 2)
            return Rope(base, scaling, "linear", factor, None, divisors), remarks
        case "dynamic":
            factor = above_zero("factor", scaling["factor"])
            remarks += (
                f"Beyond {context:,} tokens the model stretches its rotation with the text "
                "(dynamic rope scaling), which llama.cpp does not: it is not the same model there.",
            )
            if abs(factor - (factor - 1) - 1) > 1e-6:
                raise CheckpointError(f"config.json says factor = {factor!r}, which is too large.")
            return Rope(base, scaling), remarks
        case "llama3":
            divisors = llama3_divisors(base, head_dim, scaling, original)
            return Rope(base, scaling, divisors=divisors), remarks
        case "yarn":
            return _yarn(base, head_dim, scaling, original, context), remarks
        case "longrope":
            remarks += (
                "The model has other rotations in texts of more than "
                f"{original:,} tokens (longrope). llama.cpp chooses by the size of its context "
                f"instead: run it with at most {original:,} tokens (-c) for shorter texts.",
            )
            return _longrope(base, head_dim, scaling, original, context), remarks
        case "proportional":
            factor = above_zero("factor", scaling.get("factor", 1.0))
            turning = int(_share(part) * head_dim // 2)
            divisors = (factor,) * turning + (_NEVER,) * (head_dim // 2 - turning)
            return Rope(base, scaling, divisors=divisors), remarks
    return Rope(base, scaling), remarks


def _find(config: Mapping[str, Any]) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Where the settings are, what they are, and a remark if the other place has others.

    transformers 5 writes rope_parameters, 4 wrote rope_scaling, exporters write both; both versions
    let rope_scaling win, and then take nothing from the other.
    """
    found = {}
    for place in ("rope_scaling", "rope_parameters"):
        value = config.get(place)
        if value is not None and not isinstance(value, Mapping):
            raise CheckpointError(f"config.json's {place} must be an object or null.")
        if value:
            found[place] = dict(value)
    if not found:
        return "rope_scaling", {}, ()
    place, scaling = next(iter(found.items()))
    if layers := [key for key, value in scaling.items() if isinstance(value, Mapping)]:
        raise CheckpointError(
            f"config.json's {place} differs from layer to layer ({', '.join(layers)}), which "
            "llama.cpp does not support for this architecture."
        )
    other = found.get("rope_parameters", scaling)
    if _plain(other) == _plain(scaling):
        return place, scaling, ()
    return (
        place,
        scaling,
        (
            "config.json has rope_scaling beside another rope_parameters. The first holds, as in "
            "transformers, and nothing of the second is used.",
        ),
    )


def _plain(scaling: Mapping[str, Any]) -> dict[str, Any]:
    named = {"rope_type": scaling.get("rope_type", scaling.get("type", "default"))}
    return {key: value for key, value in scaling.items() if key != "type"} | named


def _kind(place: str, scaling: Mapping[str, Any]) -> str:
    names = [scaling[key] for key in ("rope_type", "type") if key in scaling] or ["default"]
    if names[0] != names[-1]:
        raise CheckpointError(
            f"config.json's {place} says both rope_type = {names[0]!r} and type = {names[-1]!r}; "
            "remove the wrong one."
        )
    if names[0] is None:
        raise CheckpointError(
            f"config.json's {place} does not say its rope_type; copy it from the original model, "
            f"or set {place} to null if that has none."
        )
    if not isinstance(names[0], str) or names[0] not in _READ:
        raise CheckpointError(
            f"config.json asks for {names[0]!r} rope scaling, which transformers or llama.cpp does "
            f"not support for this architecture; it supports {', '.join(_READ)}."
        )
    return names[0]


def _twice(
    place: str,
    scaling: Mapping[str, Any],
    config: Mapping[str, Any],
    key: str,
    *,
    outer: bool = False,
) -> tuple[str, ...]:
    """A remark on a number that is said within and without; transformers 5 has the ``outer``."""
    inside, outside = scaling.get(key), config.get(key)
    if inside is None or outside is None or inside == outside:
        return ()
    held = outside if outer else inside
    return (
        f"config.json says {key} = {outside!r}, and {inside!r} in {place}: {held!r} holds, as in "
        "transformers 5; versions of transformers 4 may take the other.",
    )


def _unread(place: str, kind: str, scaling: Mapping[str, Any]) -> tuple[str, ...]:
    unread = [
        key
        for key, value in scaling.items()
        if value is not None and key not in _OF_ALL | _READ[kind]
    ]
    if not unread:
        return ()
    return (
        f"config.json's {place} has {', '.join(sorted(unread))}, which rope type {kind} does not "
        "read in transformers; it is left out.",
    )


def llama3_divisors(
    theta: float, head_dim: int, scaling: Mapping[str, Any], old_context: int
) -> tuple[float, ...]:
    """Per-frequency divisors of Llama 3's rope scaling, float32.

    Source: "llama3" in transformers' ``modeling_rope_utils.py``. The arithmetic is the float32 of
    llama.cpp's converter, where torch divides by multiplying with a reciprocal, so that the same
    numbers end up in ``rope_freqs.weight``. Powers are rounded to the nearest float32; torch's own
    are off by one in the last place here and there, depending on the CPU, but not for Llama 3.

    Raises:
        CheckpointError: a number of the scaling is not above 0, or its bounds are swapped.

    """
    import numpy as np

    factor, low, high = (
        above_zero(key, scaling.get(key))
        for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    if low >= high:
        raise CheckpointError(
            f"config.json says low_freq_factor = {low:g} and high_freq_factor = {high:g}; the high "
            "one must be the larger."
        )
    f32 = np.float32
    exponents = np.arange(0, head_dim, 2, dtype=f32) / f32(head_dim)
    freqs = f32(1.0) / np.power(theta, exponents.astype(np.float64)).astype(f32)
    factors = []
    for freq in freqs:
        wavelength = f32(1.0) / freq * f32(2 * math.pi)
        if wavelength < old_context / high:
            factors.append(1.0)
        elif wavelength > old_context / low:
            factors.append(float(f32(factor)))
        else:
            smooth = (f32(1.0) / wavelength * f32(old_context) - f32(low)) / f32(high - low)
            blend = f32(1.0) / ((f32(1.0) - smooth) / f32(factor) + smooth)
            factors.append(float(blend))
    return tuple(factors)


def _yarn(theta: float, dim: int, scaling: Mapping[str, Any], original: int, context: int) -> Rope:
    """YaRN (Peng et al., 2023): slow rotations are stretched, fast ones kept, a ramp between.

    llama.cpp's architecture ``llama`` reads neither beta_fast and beta_slow nor how to round the
    ends of the ramp: where they are not the usual ones, the divisors are written instead.
    """
    factor = above_zero("factor", _first(scaling["factor"], context / original))
    fast, slow = (
        above_zero(key, scaling.get(key) or usual)
        for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    truncate = bool(scaling.get("truncate", True))
    if theta == 1:
        raise CheckpointError("config.json says rope_theta = 1, which makes YaRN meaningless.")

    def dimension(turns: float) -> float:
        """The dimension that turns so often over the trained length."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    kept = [1 - min(max((i - low) / width, 0), 1) for i in range(dim // 2)]
    divisors = tuple(1 / ((1 - part) / factor + part) for part in kept)
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        m, m_all = (scaling.get(key) for key in ("mscale", "mscale_all_dim"))
        if m and m_all:
            m, m_all = above_zero("mscale", m), above_zero("mscale_all_dim", m_all)
            magnitude = yarn_magnitude(factor, m) / yarn_magnitude(factor, m_all)
        else:
            magnitude = yarn_magnitude(factor)
    magnitude = above_zero("attention_factor", magnitude)
    is_usual = (fast, slow, truncate) == (32, 1, True) and (low, high) == _ggml_ramp(
        dim, original, theta
    )
    if is_usual and factor >= 1 and high >= low:
        return Rope(theta, scaling, "yarn", factor, original, divisors, magnitude=magnitude)
    return Rope(theta, scaling, divisors=divisors, magnitude=magnitude)


def _ggml_ramp(dim: int, original: int, theta: float) -> tuple[float, float]:
    """The ends of the ramp in llama.cpp: ``ggml_rope_yarn_corr_dims``, in its float32."""
    import numpy as np

    f32 = np.float32

    def dimension(turns: float) -> Any:
        share = f32(original) / (f32(turns) * f32(2) * f32(math.pi))
        return f32(dim) * np.log(share) / (f32(2) * np.log(f32(theta)))

    low, high = np.floor(dimension(32)), np.ceil(dimension(1))
    return float(max(low, 0)), float(min(high, dim - 1))


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies sine and cosine by, unless it is told another number."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(
    theta: float, dim: int, scaling: Mapping[str, Any], original: int, context: int
) -> Rope:
    """LongRoPE (Ding et al., 2024): divisors for short texts, and others for long ones."""
    factor = above_zero("factor", _first(scaling.get("factor"), context / original))
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        stretched = 1 + math.log(factor) / math.log(original)
        magnitude = math.sqrt(stretched) if factor > 1 else 1.0
    short, long_ = (
        _divisors(key, scaling.get(key), dim) for key in ("short_factor", "long_factor")
    )
    magnitude = above_zero("attention_factor", magnitude)
    return Rope(theta, scaling, "longrope", None, original, short, long_, magnitude)


def _divisors(key: str, values: Any, dim: int) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != dim // 2:
        raise CheckpointError(f"config.json's {key} must be a list of {dim // 2} numbers.")
    return tuple(above_zero(key, value) for value in values)


def _share(value: Any) -> float:
    share = above_zero("partial_rotary_factor", value)
    if share > 1:
        raise CheckpointError(f"config.json says partial_rotary_factor = {share:g}; 1 is all.")
    return share


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def above_zero(key: str, value: Any) -> float:
    """A number of a config, checked.

    Raises:
        CheckpointError: it is missing, no number, or not above 0.

    """
    if value is None:
        raise CheckpointError(f"config.json lacks {key}; copy it from the original model.")
    if not isinstance(value, int | float) or isinstance(value, bool):
        quotes = " without quotes" if isinstance(value, str) else ""
        raise CheckpointError(
            f"config.json says {key} = {reprlib.repr(value)}; it must be a number{quotes}."
        )
    if not 0 < value < math.inf:
        raise CheckpointError(f"config.json says {key} = {value!r}; it must be above 0.")
    return float(value)
