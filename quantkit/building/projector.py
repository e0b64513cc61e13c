"""The vision or audio part of a model: a file of its own, which llama.cpp calls mmproj.

It is built after the model's own files, by the same engine into the same folder, in a pass over its
own tensors alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantkit.building.output import check_names
from quantkit.building.source import stamps_of
from quantkit.building.work import Work, with_reader
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.describe import describe_projector, described_model
from quantkit.core.errors import ConverterError
from quantkit.encodings.encoding import encoding
from quantkit.encodings.kernel import load_kernel
from quantkit.formats.gguf.layout import lay_out_projector
from quantkit.formats.gguf.metadata import describe_projector_of
from quantkit.planning.plan import Plan, PlannedTensor
from quantkit.planning.quants import all_quants

NONE = "none"
DEFAULT = "f16"
KINDS = (DEFAULT, "bf16", "q8_0")

_MISSING = "What is built takes text alone, because the vision or audio part is missing"
TAKES = {"vision": "clip.has_vision_encoder", "audio": "clip.has_audio_encoder"}


@dataclass(frozen=True, slots=True)
class Projector:
    """The vision or audio part of a model, to be built; or a sentence on why it is missing.

    Both are empty where the model has none.
    """

    work: Work | None = None
    missing: str = ""


def prepare_projector(text: Work, kind: str, name: str | None = None) -> Projector:
    """Plan the vision or audio part of a model. Reads headers and small files, and no weights.

    Args:
        text: the work on the model itself.
        kind: one of ``KINDS``.
        name: the model's name, instead of the one in its card or folder.

    Raises:
        OutputError: the name is too long for files.

    """
    try:
        found = describe_projector(text.checkpoint, kind)
    except ConverterError as error:
        return Projector(missing=f"{_MISSING}: {error}")
    if found is None:
        return Projector()
    assert found.description is not None  # noqa: S101 - it was described
    found.description.rows.close()  # until it is built, and the model's own is over
    model = described_model(found)
    said = found.description.header.metadata
    takes = tuple(part for part, key in TAKES.items() if said.get(key))
    tensors = (PlannedTensor(target, encoding(target.stored)) for target in model.targets)
    plan = Plan(all_quants()[kind], tuple(tensors))
    layout = lay_out_projector(plan, describe_projector_of(text.base_name, model, name), takes)
    check_names([layout])
    work = Work(found, model, text.base_name, (layout,), load_kernel(text.kernel.name))
    return Projector(with_reader(work))


def projector_bytes(checkpoint: Checkpoint, kind: str = DEFAULT) -> int:
    """Tensor bytes of the vision or audio part of a checkpoint; 0 where it has none to build.

    Of one that llama.cpp's converter describes; no weight is read.
    """
    try:
        found = describe_projector(checkpoint, kind)
    except ConverterError:
        return 0
    if found is None or found.description is None:
        return 0
    found.description.rows.close()  # nobody asks for rows
    tensors = (PlannedTensor(t, encoding(t.stored)) for t in found.description.targets)
    return sum(tensor.n_bytes for tensor in tensors)


def knowing(work: Work, entries: Iterable[Mapping[str, Any]]) -> Work:
    """The same work with the sha256 of its weight files that artifacts of the same source have.

    A local file that bears another time than then is read as a whole again.

    Args:
        work: of the projector.
        entries: of the manifest, for artifacts that were built of the same weight files.

    """
    known: dict[str, str | None] = {}
    times = {file.name: time for file, (_, time) in stamps_of(work.checkpoint).items()}
    for entry in entries:
        for weight in entry["source"]["weights"]:
            name = weight["name"].rpartition("/")[2]  # on the Hub it may lie in a folder
            if weight.get("modified_ns", 0) != times.get(name):
                continue
            sha256 = weight["sha256"] if weight.get("verified", True) else None
            known[name] = sha256 or known.get(name)
    return replace(work, known=known)
