"""What quants lose: measured by `compare` where somebody did, else as it was published."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from quantkit.core.documents import to_type
from quantkit.core.files import has_file
from quantkit.core.profiles import load_profile
from quantkit.fitting.model import SizedModel
from quantkit.fitting.settings import FitError
from quantkit.fitting.variants import Variant
from quantkit.planning.quants import all_quants

if TYPE_CHECKING:
    from quantkit.verification.kept import KeptResult

# How much a measured file may differ in size from the one that is judged: by its header.
_SAME_SIZE = 0.01


@dataclass(frozen=True, slots=True)
class Loss:
    """The mean KL divergence of a quant's predictions from the unquantized model's, in nats.

    ``kld`` is that of the file as it is, or would be built: ``weighted`` with an importance matrix.
    ``least`` is the smallest that is known of this quant, however it is built.
    """

    kld: float
    least: float
    weighted: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """Losses by the names of quants, all on one scale, and where the figures come from.

    Only within a scale are they comparable.
    """

    label: Literal["measured", "published"]
    source: str
    losses: Mapping[str, Loss]


def published_scale(*, weighted: bool) -> Scale:
    """What llama.cpp's authors measured of each of its mixtures, of one model.

    Args:
        weighted: whether quants that can do without an importance matrix get one, too.

    """
    profile = load_profile("quality.toml")
    losses = {}
    for name in all_quants():
        figures = profile.get(name, {}).get("published")
        if figures is None or _is_unquantized(name):
            continue
        plain, with_one = figures.get("kld"), figures.get("with_imatrix")
        chosen = with_one if plain is None or (weighted and with_one is not None) else plain
        least = min(figure for figure in (plain, with_one) if figure is not None)
        losses[name] = Loss(chosen, least, weighted=chosen is with_one)
    return Scale("published", profile["basis"]["published"], losses)


def find_comparison(name: str) -> Path | None:
    """The ``compare.json`` that lies among the files of a model, if there is one."""
    path = Path(name)
    if not path.exists():
        return None
    from quantkit.verification.kept import FILE

    file = (path if path.is_dir() else path.parent) / FILE
    return file if has_file(file, error=FitError) else None


def measured_scale(file: Path, subject: SizedModel) -> Scale | None:
    """What `compare` measured of a model's quants; None where it is none of these.

    Args:
        file: what ``quantkit compare --json`` printed.
        subject: the model.

    Raises:
        FitError: the file is no such thing, or of another model.

    """
    from quantkit.verification.kept import read_kept

    document = read_kept(file, error=FitError)
    rows = {
        row.quant: row
        for row in document.artifacts
        if row.quant is not None and row.measures is not None and not row.is_reference
    }
    losses = {}
    for variant in subject.variants:
        row = rows.get(variant.name)
        if row is None or row.measures is None or _is_unquantized(variant.name):
            continue
        _require_same_model(file, row, variant)
        losses[variant.name] = Loss(row.measures.kld, row.measures.kld, weighted=False)
    return Scale("measured", f"{file.name}, on {document.text}", losses) if losses else None


class _Candidate(msgspec.Struct, frozen=True):
    kld: float | None = None
    delivered: bool = False


class _Choice(msgspec.Struct, frozen=True):
    """What is used of how a build chose between candidates, as its manifest keeps it."""

    text: str = ""
    text_sha256: str = ""
    candidates: list[_Candidate] = []


def recorded_scale(folder: Path, subject: SizedModel) -> Scale | None:
    """What builds measured before they delivered files, as the manifest beside them keeps it.

    None where nothing was measured, or on different texts.

    Raises:
        OutputError: the manifest is not one that quantkit wrote.

    """
    from quantkit.building.manifest import NAME, sound_entries

    by_file = {variant.file_name: variant for variant in subject.variants}
    found: dict[str, tuple[float, _Choice]] = {}
    for entry in sound_entries(folder).values():
        variant = by_file.get(entry["files"][0]["name"].rpartition("/")[2])
        if variant is None or "choice" not in entry:
            continue
        choice = to_type(entry["choice"], _Choice, folder / NAME, error=FitError)
        measured = [one.kld for one in choice.candidates if one.delivered and one.kld is not None]
        if measured:
            found[variant.name] = measured[0], choice
    texts = {choice.text_sha256 for _, choice in found.values()}
    if len(texts) != 1:
        return None
    text = next(choice.text for _, choice in found.values())
    losses = {name: Loss(kld, kld, weighted=False) for name, (kld, _) in found.items()}
    return Scale("measured", f"{NAME}, on {text}", losses)


def _require_same_model(file: Path, row: "KeptResult", variant: Variant) -> None:
    if abs(row.bytes - variant.file_bytes) > _SAME_SIZE * variant.file_bytes:
        raise FitError(
            f"{file} measured a {variant.name} of {row.bytes:,} bytes, and this model's has "
            f"{variant.file_bytes:,}: it is of another model; give the file of this one."
        )


def choose_scale(
    measured: Scale | None, published: Scale, names: Iterable[str]
) -> tuple[Scale, str]:
    """The scale to rank some quants by: what was measured, if that was all of them.

    Args:
        measured: of this model, if any was.
        published: of another.
        names: of the quants between which to choose.

    Returns:
        the scale, and a sentence on why it is not the measured one; empty where nothing is to say.

    """
    if measured is None:
        return published, ""
    known = [name for name in names if name in published.losses]
    absent = [name for name in known if name not in measured.losses]
    if not absent:
        return measured, ""
    return published, (
        f"{len(known) - len(absent)} of the {len(known)} quants that fit were measured, so all are "
        "ranked by published figures; measure the others too, or name those to choose from with "
        "--quant."
    )


def _is_unquantized(name: str) -> bool:
    quant = all_quants().get(name)
    return quant is not None and not quant.encoding.is_block


def beaten_by(variant: Variant, others: Iterable[Variant], scale: Scale) -> Variant | None:
    """The best of the quants that are no larger than another and lose less, None where none is.

    One that is beaten is so however it is built: with an importance matrix, too.
    """
    own = scale.losses.get(variant.name)
    if own is None:
        return None
    better = [
        (scale.losses[other.name].kld, other.file_bytes, other)
        for other in others
        if other.name in scale.losses
        and other.file_bytes <= variant.file_bytes
        and scale.losses[other.name].kld < own.least
    ]
    return min(better, key=lambda found: found[:2], default=(0, 0, None))[2]
