"""What a build makes by running a text through the model first: matrices, GPTQ quants."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.checks import check_artifact, expect_tokens_of
from quantkit.api.gguf_matrix import plan_on_gguf
from quantkit.api.matrix_first import MatrixFirst
from quantkit.api.options import CheckOptions, Resources
from quantkit.api.order import Order
from quantkit.api.reporter import Reporter
from quantkit.api.running import open_noted, remarks_on, require_running, run
from quantkit.checkpoint.open import is_gguf_source

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact, Check
    from quantkit.calibration.gptq import GptqBuild
    from quantkit.calibration.settings import Settings, Step
    from quantkit.calibration.text import Corpus
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.families.model import Model
    from quantkit.formats.folder import FolderLayout


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
        """The importance matrix, made now unless it already exists; None if none is wanted."""
        return None if self.first is None else self.first.make_matrix()

    def build_gptq(
        self, resources: Resources, checks: CheckOptions, tell: Reporter
    ) -> "list[Artifact]":
        """Build GPTQ quants, one after the other: each is calibrated on what it made of itself."""
        from quantkit.calibration.gptq import build_gptq

        remarks = remarks_on(self.corpus, self.asked)
        tokens = expect_tokens_of(self.checkpoint) if checks.smoke else None
        meter = tell.open_meter("layer")

        def check(path: Path) -> "Check":
            return check_artifact(path, resources.threads, resources.max_memory, tokens)

        artifacts = []
        try:
            for build in self.builds:

                def report(step: "Step", title: str = build.layout.name) -> None:
                    while remarks:
                        tell.note(remarks.pop(0))
                    rate = f"{step.tokens_per_second:,.0f} tokens/s"
                    meter.show(title, step.layers, step.n_layers, rate)

                artifacts.append(
                    build_gptq(
                        build,
                        self.folder,
                        check=check if checks.smoke else None,
                        report=report,
                        say=tell.note,
                        hashed=checks.verify,
                    )
                )
        finally:
            meter.close()
        return artifacts


def plan_text(order: Order) -> OnText | MatrixFirst:
    """Plan what a text is needed for. Reads headers and the text, and no weights.

    Raises:
        MissingPackageError: PyTorch or transformers is not installed.
        CheckpointError: the checkpoint is incomplete or damaged, or a GGUF is not on this machine.
        CalibrationError: transformers has no such model, the text cannot be used, or there is no
            such device.
        PlanError: the model's matrices do not divide into such groups.

    """
    return plan_on_gguf(order) if is_gguf_source(order.source) else _plan_on_checkpoint(order)


def _plan_on_checkpoint(order: Order) -> OnText:
    extra, purpose = ("gptq", "GPTQ") if order.gptq else ("calibrate", "--imatrix auto")
    require_running(extra, purpose)
    from quantkit.calibration.calibrate import is_made_from, look_ahead
    from quantkit.calibration.gptq import plan_gptq
    from quantkit.calibration.lockstep.forward import stand_ready
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.text import make_corpus
    from quantkit.checkpoint.checkpoint import stored_view
    from quantkit.checkpoint.imatrix import stand_in

    text, published = order.options.text, order.published
    checkpoint, model = _opened(order)
    stored, shown = (published.checkpoint, published.model) if published else (checkpoint, model)
    settings = Settings(text.device)
    stand_ready(stored_view(checkpoint), text.context, settings)
    base_name = _base_name(checkpoint, model, order.options.files.name)
    corpus = make_corpus(checkpoint, text.sources, text.chunks, text.context)
    builds = tuple(
        plan_gptq(
            stored,
            shown,
            corpus,
            quant,
            order.options.gptq,
            settings,
            base_name=base_name,
            shard_size=order.options.files.shard_size,
        )
        for quant in order.gptq
    )
    folder = order.folder_of(base_name)
    first = None
    if order.makes_matrix:
        first = MatrixFirst(
            folder,
            is_made=lambda matrix: is_made_from(matrix, checkpoint, corpus, settings),
            stand_in=lambda matrix: stand_in(matrix, model.targets, corpus.chunks, corpus.names),
            needed=lambda: look_ahead(checkpoint, corpus, settings),
            make=lambda matrix: run(
                checkpoint, model, corpus, matrix, settings, order.tell, text.chunks
            ),
        )
    return OnText(checkpoint, corpus, settings, text.chunks, folder, first, builds)


def _opened(order: Order) -> "tuple[Checkpoint, Model]":
    """A checkpoint and its model: of a family of ours, described, or as transformers shows it."""
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.open import open_model

    source, published = order.source, order.published
    if isinstance(source, Checkpoint) and source.description is not None:
        return source, open_model(source)
    if published is not None:
        return published.checkpoint, published.model
    return open_noted(source, "GGUFs can be made of it", order.tell.note)


def _base_name(checkpoint: "Checkpoint", model: "Model", name: str | None) -> str:
    from quantkit.families.model import Decoder
    from quantkit.formats.gguf.metadata import base_name_of, describe_checkpoint

    if checkpoint.description is None and not isinstance(model, Decoder):
        return base_name_of(checkpoint, model, name)
    return describe_checkpoint(checkpoint, model, name).base_name


def plan_gptq_quants(order: Order) -> "tuple[str, list[FolderLayout]]":
    """The model's name, and the layouts of GPTQ quants, for a plan: nothing is calibrated.

    They have no hash: it takes in the text, which is not read here.
    """
    from quantkit.formats.gptq.plan import lay_out_gptq

    checkpoint, model = _opened(order)
    files = order.options.files
    base_name = _base_name(checkpoint, model, files.name)
    if order.published is not None:
        checkpoint, model = order.published.checkpoint, order.published.model
    layouts = [
        replace(
            lay_out_gptq(checkpoint, model, q, order.options.gptq, base_name, files.shard_size),
            digest="",
        )
        for q in order.gptq
    ]
    return base_name, layouts
