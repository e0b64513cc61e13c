"""How much memory an artifact needs, as the sizes in which GPUs and RAM are sold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.checkpoint.folder import read_json
from quantkit.families import describe, is_known
from quantkit.fitting.bare import shape_of
from quantkit.fitting.ggufs import open_artifact
from quantkit.fitting.hardware import ram_to_buy
from quantkit.fitting.memory import GIB, total
from quantkit.fitting.placement import ram_alone, vram_for_whole
from quantkit.fitting.probe import probe
from quantkit.fitting.settings import USUAL_CONTEXT, ContextSettings
from quantkit.fitting.shape import Shape
from quantkit.fitting.subject import open_subject
from quantkit.fitting.transformers import parts, remembered
from quantkit.fitting.verdict import needs_at
from quantkit.publishing.layout import PublishedArtifact

# GPUs as they are sold, in GiB.
_GPUS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)


@dataclass(frozen=True, slots=True)
class Fit:
    """The smallest usual GPU that holds an artifact whole, and RAM for a run without one, in GB.

    None where no single GPU does, or the format needs one.
    """

    gpu: int | None
    ram: int | None


@dataclass(frozen=True, slots=True)
class Fits:
    """What every artifact fits in, by name, at a context of so many tokens."""

    context: int
    by_name: dict[str, Fit]


def find_fits(artifacts: Sequence[PublishedArtifact]) -> Fits:
    """What artifacts of one family fit in, as ``quantkit fit`` reckons it.

    A model is there with its vision or audio part, the larger one where there are several.

    Raises:
        NativeError, FitError: llama.cpp cannot be asked.
        CheckpointError, GGUFError: an artifact's header or config.json is unsound.

    """
    if artifacts[0].quant.format != "gguf":
        return _for_transformers(artifacts)
    beside = max((artifact.n_bytes for artifact in artifacts if artifact.is_projector), default=0)
    artifacts = [artifact for artifact in artifacts if not artifact.is_projector]
    subjects = [open_artifact(Path(artifact.files[0].local)) for artifact in artifacts]
    context = min(USUAL_CONTEXT, subjects[0].shape.n_ctx_train)
    # Only weights differ between the quants of a model.
    curve = probe(replace(subjects[-1], projector=beside), ContextSettings(context))
    found = {}
    for artifact, subject in zip(artifacts, subjects, strict=True):
        needs = needs_at(subject.variants[0], curve, curve.settings.cells)
        ram = ram_to_buy(ram_alone(needs)) // GIB
        found[artifact.name] = Fit(_gpu(vram_for_whole(needs)), ram)
    return Fits(context, found)


def _for_transformers(artifacts: Sequence[PublishedArtifact]) -> Fits:
    found = {}
    shape, settings, kept = _run(artifacts[0])  # all are of one model
    for artifact in artifacts:
        weights = sum(f.n_bytes for f in artifact.files if f.path.endswith(".safetensors"))
        needed = total(parts(weights, "exact", shape, settings, kept))
        found[artifact.name] = Fit(_gpu(needed), None)
    return Fits(settings.context, found)


def _run(artifact: PublishedArtifact) -> tuple[Shape, ContextSettings, int | None]:
    """The shape of a model, how it is run, and what it then remembers: see `parts`.

    Of no family of ours, llama.cpp's converter and llama.cpp are asked.
    """
    (config,) = [f.local for f in artifact.files if f.path.split("/")[-1] == "config.json"]
    content = read_json(config)
    subject = None if is_known(content) else open_subject(str(config.parent))
    shape = shape_of(describe(content)) if subject is None else subject.shape
    settings = ContextSettings().usual_for(shape)
    return shape, settings, remembered(probe(subject, settings)) if subject is not None else None


def _gpu(needed: int) -> int | None:
    return next((size for size in _GPUS if size * GIB >= needed), None)
