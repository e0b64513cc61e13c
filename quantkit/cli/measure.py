"""``quantkit measure``: what rounding each tensor of a model costs, for the search for recipes."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.calibrate import (
    ChatOption,
    ChunksOption,
    ContextOption,
    Device,
    DeviceOption,
    TextOption,
)
from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.import_ import JobsOption
from quantkit.cli.meters import open_meter
from quantkit.cli.output import OverwriteOption, console, escape, note
from quantkit.cli.panels import QUALITY
from quantkit.core.errors import OutputError
from quantkit.core.units import counted, parse_size

if TYPE_CHECKING:
    from quantkit.calibration.settings import Settings
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.families.model import Model


def measure(
    checkpoint: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint: a folder or HUB_ID[@REVISION].")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=QUALITY,
            help="Importance matrix that the build will have.",
        ),
    ] = None,
    text: TextOption = None,
    chat: ChatOption = None,
    chunks: ChunksOption = 16,
    context: ContextOption = 512,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=QUALITY,
            help="Look at this many rows of a matrix for its errors  [default: all]",
        ),
    ] = None,
    device: DeviceOption = Device.CPU,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for activations; more go to disk.")
    ] = "4GiB",
    jobs: JobsOption = None,
    overwrite: OverwriteOption = False,
    mtp: MtpOption = None,
    llama_cpp: LlamaCppOption = None,
) -> None:
    """Measure what rounding each tensor costs, for recipe --measured and build --measured.

    The model is run by PyTorch over text and back again, one decoder layer at a time: some eight
    times the work of calibrate. Give it other text than the importance matrix was made from.
    Killed once the way back is done, the same command goes on there.
    """
    from quantkit.api.running import remarks_on, require_running
    from quantkit.building.output import require_writable

    require_running("calibrate", "Measuring a checkpoint")
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.sources import parse_sources
    from quantkit.calibration.text import make_corpus
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.imatrix import load_imatrix
    from quantkit.encodings.kernel import load_kernel
    from quantkit.recipes.losses import are_losses, write_measured
    from quantkit.recipes.sensitivity import measure as work
    from quantkit.verification.machine import usable_cores

    sources = parse_sources(text, chat)
    require_writable(out, overwrite=overwrite)
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name a file with -o.")
    partial = out.with_name(f"{out.name}.partial")
    for file in (out, partial):
        if file.exists() and not are_losses(file):
            raise OutputError(
                f"{file} exists and is not a file of losses, so nothing replaces it; name "
                "another file with -o."
            )
    matrix = load_imatrix(imatrix) if imatrix is not None else None
    settings = Settings(device.value, 0, parse_size(max_memory))
    known, model = _open(
        checkpoint, context, settings, ConverterOptions(llama_cpp, mtp=mtp, say=note)
    )
    corpus = make_corpus(known, sources, chunks, context)
    for remark in remarks_on(corpus, chunks):
        note(remark)
    meter = open_meter("percent")
    try:
        measured = work(
            known,
            model,
            corpus,
            matrix,
            load_kernel("fast"),
            settings,
            rows=rows,
            jobs=jobs or usable_cores(),
            keep=partial,
            report=lambda share: meter.show("Measuring", 100 * share, 100),
            say=note,
        )
    finally:
        meter.close()
    write_measured(out, measured)
    partial.unlink(missing_ok=True)
    tensors = counted(len(measured.sensitivities), "tensor")
    console.print(f"{escape(str(out))}: {tensors}, {escape(measured.basis)}", soft_wrap=True)
    weighed = ["--imatrix", str(imatrix)] if imatrix is not None else []
    command = shlex.join(["quantkit", "build", checkpoint, "--measured", str(out), *weighed])
    console.print(f"  {escape(command)} --budget SIZE", soft_wrap=True)


def _open(
    name: str, context: int, settings: "Settings", wish: "ConverterOptions"
) -> "tuple[Checkpoint, Model]":
    """A checkpoint and the model that it makes; llama.cpp's converter is asked if need be."""
    from quantkit.api.running import open_noted
    from quantkit.calibration.lockstep.forward import stand_ready
    from quantkit.checkpoint.folder import is_foreign
    from quantkit.checkpoint.open import (
        described,
        open_model,
        open_stored_by_name,
        require_checkpoint,
    )

    stored = open_stored_by_name(name)
    require_checkpoint(
        stored, "give the one that it was converted from, whose losses serve this GGUF, too"
    )
    if not is_foreign(stored):
        return open_noted(stored, "search its recipe without measuring", note)
    stand_ready(stored, context, settings)  # before the converter is asked
    checkpoint = described(stored, wish)
    for remark in checkpoint.remarks:
        note(remark)
    return checkpoint, open_model(checkpoint)
