"""What model pages claim, set beside what the same figures come to when computed."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.core.profiles import load_profile, profiles_folder
from quantkit.core.units import format_count, format_size
from quantkit.fitting.answer import Answer
from quantkit.fitting.hardware import Machine, machine_from_sizes, ram_to_buy
from quantkit.fitting.memory import GIB, total
from quantkit.fitting.model import SizedModel
from quantkit.fitting.placement import place, vram_for_whole
from quantkit.fitting.probe import Curve, probe
from quantkit.fitting.subject import open_subject
from quantkit.fitting.variants import PlanOptions, Variant, plan_variants
from quantkit.fitting.verdict import describe, gib, needs_at
from quantkit.planning.quants import all_quants, find_quants

_NO_MACHINE = Machine("", (), 0, None, False, "")
_CLOSE = 0.05  # a count of parameters within so much of the real one is rounding


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim about one model: whether it holds, and the computed figure.

    ``needed`` is what would be enough and ``short`` what the claim lacks, in bytes; both are 0
    for claims about other things.
    """

    model: str
    claim: str
    source: str
    holds: bool
    computed: str
    needed: int = 0
    short: int = 0

    def as_numbers(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


def check_claims(name: str, result: Answer) -> tuple[Finding, ...]:
    """Every recorded claim about a model, and about the models made from it, checked.

    Args:
        name: the MODEL of the command line in lower case: a bundled name or a Hub id.
        result: the answer for that model, whose headers are not read again; its context and KV
            cache type are those that the claims are checked with.

    """
    found: list[Finding] = []
    for profile in _profiles_of(name):
        claimed = find_quants(claim["quant"] for claim in profile["claim"] if "quant" in claim)
        for bundled in profile["models"]:
            about_it = bundled == name or name in profile.get("hub_ids", {}).get(bundled, ())
            subject = result.subject if about_it else open_subject(bundled, PlanOptions(claimed))
            is_asked = about_it and result.subject.model is not None
            curve = result.curve if is_asked else probe(subject, result.settings)
            for claim in profile["claim"]:
                if finding := _check(claim, bundled, profile, subject, curve):
                    found.append(finding)
    return tuple(found)


def _profiles_of(name: str) -> Iterable[dict[str, Any]]:
    for file in sorted((profiles_folder() / "requirements").glob("*.toml")):
        profile = load_profile(f"requirements/{file.name}")
        ids = {one for many in profile.get("hub_ids", {}).values() for one in many}
        if name in profile["models"] or name in ids:
            yield profile


def _check(
    claim: Mapping[str, Any],
    name: str,
    profile: Mapping[str, Any],
    subject: SizedModel,
    curve: Curve,
) -> Finding | None:
    source = str(profile["source"])
    if claim["kind"] in ("vram", "ram"):
        return _check_memory(claim, name, source, subject, curve)
    if name != profile["models"][0]:
        return None  # what else the page says, it says of the model in its title
    match claim["kind"]:
        case "parameters":
            claimed, real = claim["count"], subject.n_parameters
            computed = f"{format_count(real)} ({format_count(subject.n_active)} active per token)"
            holds = abs(claimed - real) <= _CLOSE * real
            return Finding(name, f"{format_count(claimed)} parameters", source, holds, computed)
        case "context":
            tokens, trained = claim["tokens"], subject.shape.n_ctx_train
            computed = f"trained for {trained:,} tokens"
            return Finding(name, f"{claim['text']} context", source, tokens <= trained, computed)
        case "versions":
            known = all_quants()
            absent = [quant for quant in claim["quants"] if quant not in known]
            computed = (
                f"quantkit does not build {', '.join(absent)}"
                if absent
                else f"all can be built: {', '.join(claim['quants'])}"
            )
            return Finding(name, f"versions {claim['text']}", source, not absent, computed)
    return None


def _check_memory(
    claim: Mapping[str, Any], name: str, source: str, subject: SizedModel, curve: Curve
) -> Finding:
    variant = _variant(subject, name, claim["quant"])
    gpu, ram = claim["gpu"], claim["ram"]
    machine = machine_from_sizes([gpu], ram, _NO_MACHINE)
    needs = needs_at(variant, curve, curve.settings.cells)
    placement = place(needs, machine, variant.file_bytes)
    tensors = f"{format_size(variant.tensor_bytes)} of tensors"
    if claim["kind"] == "vram":
        needed = vram_for_whole(needs)
        short = max(0, needed - machine.vram)
        label = f"{claim['text']}: {gpu} VRAM"
        computed = f"{tensors}, {gib(needed)} in VRAM to be whole there: " + (
            f"{gib(short)} short" if short else f"{gib(machine.vram - needed)} to spare"
        )
        return Finding(name, label, source, not short, computed, needed, short)
    in_ram = total(placement.parts, "RAM")
    short = placement.short
    label = f"{claim['text']}: {ram} RAM beside {gpu} VRAM"
    if placement.fits:
        computed = f"{describe(placement)}; {gib(in_ram)} in RAM"
    else:
        computed = (
            f"{tensors}; with the GPU full, {gib(in_ram)} are left for RAM: {gib(short)} short; "
            f"{ram_to_buy(in_ram) // GIB} GB of RAM would be enough"
        )
    return Finding(name, label, source, placement.fits, computed, in_ram, short)


def _variant(subject: SizedModel, name: str, quant: str) -> Variant:
    """The claimed quant, also where --quant left it out of the answer."""
    for variant in subject.variants:
        if variant.name == quant:
            return variant
    wishes = PlanOptions(find_quants([quant]))
    if subject.buildable is not None:
        return plan_variants(subject.buildable, wishes)[0]
    return open_subject(name, wishes).variants[0]
