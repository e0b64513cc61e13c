"""What ``quantkit build`` makes by running a text through the checkpoint first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.calibrate import Device, open_model, remarks_on, run
from quantkit.cli.checks import check_artifact, expect_tokens_of
from quantkit.cli.output import note, open_meter

if TYPE_CHECKING:
    from quantkit.build.engine import Artifact, Check
    from quantkit.calibrate.calibrate import Step
    from quantkit.checkpoint.folder import Checkpoint
    from quantkit.formats.folder import FolderLayout
    from quantkit.formats.gptq.plan import GptqOptions
    from quantkit.plan.quants import Quant


@dataclass(frozen=True, slots=True)
class Text:
    """What to run through the checkpoint, and where."""

    files: Sequence[Path]
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


def make_imatrix(
    source: "Path | Checkpoint", name: str | None, out: Path | None, text: Text
) -> Path:
    """The importance matrix in the output folder, made now unless the same is there already."""
    from quantkit.core.packages import require

    require("torch", "PyTorch", "calibrate", "--imatrix auto")
    from quantkit.calibrate.calibrate import Settings, is_made_from
    from quantkit.calibrate.text import make_corpus
    from quantkit.formats.gguf.metadata import describe_checkpoint

    checkpoint, model = open_model(source)
    corpus = make_corpus(checkpoint, text.files, text.chunks, text.context)
    settings = Settings(text.device.value)
    out = out or Path(f"{describe_checkpoint(checkpoint, model, name).base_name}-GGUF")
    path = out / "imatrix.gguf"
    if not is_made_from(path, checkpoint, corpus, settings):
        run(checkpoint, model, corpus, path, settings, remarks_on(corpus, text.chunks))
    return path


def plan_gptq_quants(
    source: "Path | Checkpoint", wish: GptqWish, name: str | None
) -> "tuple[str, list[FolderLayout]]":
    """The model's name, and the layouts of GPTQ quants, for a dry run: nothing is calibrated.

    They have no hash: it takes in the text, which is not read here.
    """
    from quantkit.formats.gguf.metadata import describe_checkpoint
    from quantkit.formats.gptq.plan import lay_out_gptq

    checkpoint, model = open_model(source)
    base_name = describe_checkpoint(checkpoint, model, name).base_name
    layouts = [
        replace(
            lay_out_gptq(checkpoint, model, quant, wish.options, base_name, wish.shard_size),
            digest="",
        )
        for quant in wish.quants
    ]
    return base_name, layouts


def build_gptq_quants(
    source: "Path | Checkpoint",
    wish: GptqWish,
    text: Text,
    name: str | None,
    out: Path | None,
    *,
    threads: int,
    memory: int,
    smoke: bool,
) -> "list[Artifact]":
    """Build GPTQ quants, one after the other: each is calibrated on what it made of itself."""
    from quantkit.core.packages import require

    require("torch", "PyTorch", "gptq", "GPTQ")
    from quantkit.calibrate.calibrate import Settings
    from quantkit.calibrate.gptq import build_gptq, plan_gptq
    from quantkit.calibrate.text import make_corpus
    from quantkit.formats.gguf.metadata import describe_checkpoint

    checkpoint, model = open_model(source)
    corpus = make_corpus(checkpoint, text.files, text.chunks, text.context)
    base_name = describe_checkpoint(checkpoint, model, name).base_name
    builds = [
        plan_gptq(
            checkpoint,
            model,
            corpus,
            quant,
            wish.options,
            Settings(text.device.value),
            base_name=base_name,
            search=wish.search,
            shard_size=wish.shard_size,
        )
        for quant in wish.quants
    ]
    out = out or Path(f"{base_name}-quants")
    remarks = remarks_on(corpus, text.chunks)
    tokens = expect_tokens_of(checkpoint) if smoke else None
    meter = open_meter(layers=True)

    def check(path: Path) -> "Check":
        assert tokens is not None  # noqa: S101 - it is called in smoke tests only
        return check_artifact(path, threads, memory, tokens)

    artifacts = []
    try:
        for build in builds:

            def report(step: "Step", title: str = build.layout.name) -> None:
                while remarks:
                    note(remarks.pop(0))
                meter.show(
                    title, step.layers, step.n_layers, f"{step.tokens_per_second:,.0f} tokens/s"
                )

            artifacts.append(build_gptq(build, out, check=check if smoke else None, report=report))
    finally:
        meter.close()
    return artifacts
