"""What ``quantkit build`` makes by running a text through the checkpoint first."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.checks import check_artifact, expect_tokens_of
from quantkit.building.output import default_folder
from quantkit.cli.calibrate import Device, open_noted, remarks_on, require_running, run
from quantkit.cli.matrix_first import MatrixFirst
from quantkit.cli.output import note, open_meter

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact, Check
    from quantkit.calibration.gptq import GptqBuild
    from quantkit.calibration.settings import Settings, Step
    from quantkit.calibration.sources import TextSource
    from quantkit.calibration.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.families.model import Model
    from quantkit.formats.folder import FolderLayout
    from quantkit.formats.gptq.plan import GptqOptions
    from quantkit.planning.quants import Quant


@dataclass(frozen=True, slots=True)
class Published:
    """A model as transformers shows it, and its checkpoint under its own names.

    Quants for transformers are made of it where llama.cpp's converter describes what GGUFs are made
    of: of no family of ours, or in FP8, which is multiplied by its scales here.
    """

    checkpoint: "Checkpoint"
    model: "Model"

    def stored_in(self, checkpoint: "Checkpoint | Path") -> "Published":
        """The same model, whose weights lie in another place now."""
        from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
        from quantkit.checkpoint.scaled import as_meant

        assert isinstance(checkpoint, Checkpoint)  # noqa: S101 - it was fetched from the Hub
        return replace(self, checkpoint=as_meant(stored_view(checkpoint)))


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What to run through the checkpoint, and where."""

    sources: "Sequence[TextSource]"
    chunks: int
    context: int
    device: Device


@dataclass(frozen=True, slots=True)
class GptqWish:
    """Which GPTQ quants, and how they are to be made and stored."""

    quants: "Sequence[Quant]"
    options: "GptqOptions"
    search: bool
    shard_size: int | None


@dataclass(frozen=True, slots=True)
class OnText:
    """All that a text is needed for, planned: nothing has been run or written."""

    checkpoint: "Checkpoint"
    corpus: "Corpus"
    settings: "Settings"
    asked: int
    folder: Path
    first: MatrixFirst | None
    builds: "tuple[GptqBuild, ...]"

    @property
    def lacks_matrix(self) -> bool:
        """Whether an importance matrix is wanted and still to be made.

        Raises:
            OutputError: another is there.

        """
        return self.first is not None and self.first.lacks_matrix

    def foresee_matrix(self) -> "Imatrix | None":
        """The importance matrix, or what stands for it until it is made; None if none is wanted."""
        return None if self.first is None else self.first.foresee_matrix()

    def look_ahead(self, *, hashed: bool) -> int:
        """The bytes that all of this will need on the disk.

        Raises:
            OutputError: the folder holds something else under one of the names.
            CalibrationError: the model cannot be run over the text.

        """
        from quantkit.building import engine
        from quantkit.calibration import calibrate

        runs = calibrate.look_ahead(self.checkpoint, self.corpus, self.settings)
        return runs + sum(
            engine.look_ahead(build.work, self.folder, hashed=hashed) for build in self.builds
        )

    def make_matrix(self) -> "Imatrix | None":
        """The importance matrix, made now unless it is there already; None if none is wanted."""
        return None if self.first is None else self.first.make_matrix()

    def build_gptq(
        self, *, threads: int, memory: int, smoke: bool, hashed: bool
    ) -> "list[Artifact]":
        """Build GPTQ quants, one after the other: each is calibrated on what it made of itself."""
        from quantkit.calibration.gptq import build_gptq

        remarks = remarks_on(self.corpus, self.asked)
        tokens = expect_tokens_of(self.checkpoint) if smoke else None
        meter = open_meter("layer")

        def check(path: Path) -> "Check":
            return check_artifact(path, threads, memory, tokens)

        artifacts = []
        try:
            for build in self.builds:

                def report(step: "Step", title: str = build.layout.name) -> None:
                    while remarks:
                        note(remarks.pop(0))
                    rate = f"{step.tokens_per_second:,.0f} tokens/s"
                    meter.show(title, step.layers, step.n_layers, rate)

                artifacts.append(
                    build_gptq(
                        build,
                        self.folder,
                        check=check if smoke else None,
                        report=report,
                        say=note,
                        hashed=hashed,
                    )
                )
        finally:
            meter.close()
        return artifacts


def plan_on_text(
    source: "Path | Checkpoint",
    text: TextOptions,
    name: str | None,
    out: Path | None,
    *,
    wants_matrix: bool,
    gptq: GptqWish,
    only_gguf: bool,
    published: Published | None = None,
) -> OnText:
    """Plan what a text is needed for. Reads headers and the text, and no weights.

    Raises:
        MissingPackageError: PyTorch or transformers is not installed.
        CheckpointError: the checkpoint is incomplete or damaged.
        CalibrationError: transformers has no such model, the text cannot be used, or there is no
            such device.
        PlanError: the model's matrices do not divide into such groups.

    """
    extra, purpose = ("gptq", "GPTQ") if gptq.quants else ("calibrate", "--imatrix auto")
    require_running(extra, purpose)
    from quantkit.calibration.calibrate import is_made_from, look_ahead
    from quantkit.calibration.gptq import plan_gptq
    from quantkit.calibration.lockstep.forward import stand_ready
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.text import make_corpus
    from quantkit.checkpoint.checkpoint import stored_view
    from quantkit.checkpoint.imatrix import stand_in

    checkpoint, model = _opened(source, published)
    stored, shown = (published.checkpoint, published.model) if published else (checkpoint, model)
    settings = Settings(text.device.value)
    stand_ready(stored_view(checkpoint), text.context, settings)
    base_name = _base_name(checkpoint, model, name)
    corpus = make_corpus(checkpoint, text.sources, text.chunks, text.context)
    builds = tuple(
        plan_gptq(
            stored,
            shown,
            corpus,
            quant,
            gptq.options,
            settings,
            base_name=base_name,
            search=gptq.search,
            shard_size=gptq.shard_size,
        )
        for quant in gptq.quants
    )
    folder = out or default_folder(base_name, only_gguf=only_gguf)
    first = None
    if wants_matrix:
        first = MatrixFirst(
            folder,
            is_made=lambda matrix: is_made_from(matrix, checkpoint, corpus, settings),
            stand_in=lambda matrix: stand_in(matrix, model.targets, corpus.chunks, corpus.names),
            needed=lambda: look_ahead(checkpoint, corpus, settings),
            make=lambda matrix: run(
                checkpoint, model, corpus, matrix, settings, remarks_on(corpus, text.chunks)
            ),
        )
    return OnText(checkpoint, corpus, settings, text.chunks, folder, first, builds)


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads inside the ``with`` block; None: as it is."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _opened(source: "Path | Checkpoint", published: Published | None) -> "tuple[Checkpoint, Model]":
    """A checkpoint and its model: of a family of ours, described, or as transformers shows it."""
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.open import open_model

    if isinstance(source, Checkpoint) and source.description is not None:
        return source, open_model(source)
    if published is not None:
        return published.checkpoint, published.model
    return open_noted(source, "GGUFs can be made of it")


def _base_name(checkpoint: "Checkpoint", model: "Model", name: str | None) -> str:
    from quantkit.families.model import Decoder
    from quantkit.formats.gguf.metadata import base_name_of, describe_checkpoint

    if checkpoint.description is None and not isinstance(model, Decoder):
        return base_name_of(checkpoint, model, name)
    return describe_checkpoint(checkpoint, model, name).base_name


def as_published(source: "Path | Checkpoint", quants: "Sequence[Quant]") -> Published | None:
    """What quants for transformers are made of; None for a model of a family of ours.

    Args:
        source: as `quantkit.checkpoint.open.find_source` gives it.
        quants: all that are asked for.

    Raises:
        MissingPackageError: PyTorch or transformers is not installed.
        CalibrationError: transformers has no such model.
        PlanError: nothing would be quantized, or it is in FP8 and on the Hub.
        CheckpointError: the checkpoint is incomplete or damaged, or stored in quantized form.

    """
    from quantkit.checkpoint.folder import is_foreign
    from quantkit.checkpoint.open import open_stored, require_layers
    from quantkit.core.errors import PlanError
    from quantkit.families import is_known

    stored = open_stored(source) if isinstance(source, Path) else source
    if not is_foreign(stored):
        require_layers(stored, "give the checkpoint that it was made from")
        return None
    formats = {quant.format for quant in quants}
    extra = "gptq" if "gptq" in formats else "bnb"
    require_running(extra, "A quant for transformers of this model")
    import torch

    from quantkit.calibration.lockstep.forward import LockstepForward
    from quantkit.calibration.lockstep.published import publish_model
    from quantkit.checkpoint.scaled import as_meant

    plain = as_meant(stored)
    if plain is stored and is_known(stored.config):
        require_layers(stored, "give the checkpoint that it was made from")
    if plain is not stored and stored.repo is not None and not _is_here(stored):
        raise PlanError(
            f"{stored.repo} is stored in FP8, which quants for transformers are made of only where "
            f"it lies on this machine; download it first: hf download {stored.repo.repo_id}."
        )
    return Published(plain, publish_model(LockstepForward(plain, torch.device("cpu")), plain))


def _is_here(checkpoint: "Checkpoint") -> bool:
    return all(file.is_file() for file in checkpoint.files)


def plan_gptq_quants(
    source: "Path | Checkpoint",
    wish: GptqWish,
    name: str | None,
    published: Published | None = None,
) -> "tuple[str, list[FolderLayout]]":
    """The model's name, and the layouts of GPTQ quants, for a dry run: nothing is calibrated.

    They have no hash: it takes in the text, which is not read here.
    """
    from quantkit.formats.gptq.plan import lay_out_gptq

    checkpoint, model = _opened(source, published)
    base_name = _base_name(checkpoint, model, name)
    if published is not None:
        checkpoint, model = published.checkpoint, published.model
    layouts = [
        replace(
            lay_out_gptq(checkpoint, model, quant, wish.options, base_name, wish.shard_size),
            digest="",
        )
        for quant in wish.quants
    ]
    return base_name, layouts
