"""An importance matrix of a checkpoint or a GGUF, and where the router sends tokens."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.api.checked import checked
from quantkit.api.gguf_matrix import experts_in, gather_from_gguf, open_gguf_here
from quantkit.api.joined import require_continuable
from quantkit.api.needs import CALIBRATE, CalibrateWish, refuse_idle
from quantkit.api.options import CalibrateOptions, changed
from quantkit.api.reporter import Progress, Reporter, reporter
from quantkit.api.running import open_noted, require_running, run
from quantkit.building.output import check_space, require_writable
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.folder import is_foreign
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.checkpoint.open import described, is_gguf_file, open_model, open_stored_by_name
from quantkit.core.errors import ImatrixError, OutputError
from quantkit.core.packages import require
from quantkit.core.writing import require_new
from quantkit.families.model import Model

if TYPE_CHECKING:
    from quantkit.calibration.calibrate import Calibration
    from quantkit.calibration.routing import Routing
    from quantkit.verification.imatrix import Gathered

_USUAL = CalibrateOptions()


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An importance matrix, and what the run saw.

    ``total`` counts the chunks of matrices that it continues, too. ``perplexity`` is None where the
    model predicts nothing. An earlier, interrupted run had done ``resumed`` of what ``unit`` names,
    layers or chunks. ``routing`` is by the numbers of layers that have experts; those that had
    fewer tokens than ``min_tokens`` borrowed some, 0 where none may.
    """

    path: Path
    chunks: int
    total: int
    context: int
    text: tuple[str, ...]
    perplexity: float | None
    resumed: int
    unit: str
    routing: "Mapping[int, Routing]"
    min_tokens: int


def calibrate(
    source: str | Path,
    out: str | Path = Path("imatrix.gguf"),
    options: CalibrateOptions = _USUAL,
    *,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] | None = None,
    given: Container[str] | None = None,
) -> Calibrated:
    """Run a model over text and write an importance matrix.

    A checkpoint is run by PyTorch, one decoder layer at a time, in the memory of a layer. A GGUF is
    run by llama.cpp, whatever its architecture. Stopped or killed, the same call goes on.

    Args:
        source: a checkpoint folder, a name on the Hub, or a GGUF.
        out: the file to write.
        options: what it is run over, and how.
        overwrite: replace an importance matrix and a picture that are there already.
        progress: told how far it is.
        note: told remarks, in sentences.
        given: names of the options that were given, as the command line spells its parameters;
            None for those that are not what they are by themselves.

    Raises:
        PlanError: an option would do nothing.
        MissingPackageError: a package is needed that is not installed.
        CalibrationError: the model cannot be run over the text.
        OutputError: the file already exists, or cannot be written.
        CheckpointError, ConverterError, GGUFError, ImatrixError: a file is not what it should be.

    """
    out, options = Path(out), checked(options, CalibrateOptions)
    tell, given = reporter(progress, note), changed(options) if given is None else given
    plot, file, is_gguf = options.plot, Path(source), is_gguf_file(Path(source))
    refuse_idle(given, CALIBRATE, CalibrateWish(options.random_tokens, is_gguf))
    if not is_gguf:
        require_running("calibrate", "Calibrating a checkpoint")
    if plot is not None:
        require("matplotlib", "matplotlib", "plot", "--plot")
    sources = options.text.sources
    _require_file(out, overwrite=overwrite)
    require_new(plot, overwrite=overwrite)
    if plot is not None and plot.resolve() == out.resolve():
        raise OutputError(f"{out} cannot be the matrix and --plot's picture; name two files.")
    if is_gguf:
        return _of_gguf(file, out, options, tell, given)
    from quantkit.calibration.calibrate import look_ahead
    from quantkit.calibration.lockstep.forward import stand_ready
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.text import make_corpus, random_corpus

    text = options.text
    settings = Settings(text.device, options.min_tokens, options.max_memory)
    stored = open_stored_by_name(str(source))
    known, model, experts = _open(
        stored, lambda: stand_ready(stored, text.context, settings), given, options, tell
    )
    _require_drawable(plot)
    require_continuable(options.earlier, model.targets)
    if options.random_tokens:
        corpus = random_corpus(_vocabulary(model), text.chunks, text.context)
    else:
        corpus = make_corpus(known, sources, text.chunks, text.context)
    check_space(out.absolute().parent, look_ahead(known, corpus, settings))
    made = run(known, model, corpus, out, settings, tell, text.chunks, options.earlier)
    lends = known.description is None and experts
    return _finish(made, "layers", options.min_tokens if lends else 0, plot)


def _of_gguf(
    file: Path, out: Path, options: CalibrateOptions, tell: Reporter, given: Container[str]
) -> Calibrated:
    """The same of a GGUF, which llama.cpp runs."""
    from quantkit.verification.imatrix import GatherOptions

    text = options.text
    gguf = open_gguf_here(file)
    assert gguf.header is not None  # noqa: S101 - it is a GGUF
    experts = experts_in(gguf.header)
    wish = CalibrateWish(options.random_tokens, is_gguf=True, experts=experts)
    refuse_idle(given, CALIBRATE, wish)
    _require_drawable(options.plot)
    require_continuable(options.earlier, open_model(gguf).targets)
    over = GatherOptions(text.sources, text.chunks, text.context, gpu_layers=options.gpu_layers)
    made = gather_from_gguf(gguf, over, out, tell, options.earlier)
    return _finish(made, "chunks", 0, options.plot)


def _open(
    stored: Checkpoint,
    stand_ready: Callable[[], object],
    given: Container[str],
    options: CalibrateOptions,
    tell: Reporter,
) -> tuple[Checkpoint, Model, int]:
    """A checkpoint, the model that it makes, and how many experts that has.

    One of a family of ours is described by that, any other by llama.cpp's converter, which is not
    asked before it is known that the model can be run.

    Raises:
        PlanError: an option would do nothing for such a model.
        CalibrationError, CheckpointError, ConverterError: it cannot be run, or not described.

    """
    random_tokens = options.random_tokens
    if not is_foreign(stored):
        known, model = open_noted(
            stored,
            "build a bf16 GGUF of it and make the importance matrix with llama-imatrix, for "
            "--imatrix",
            tell.note,
        )
        experts = model.hparams.num_local_experts
        refuse_idle(given, CALIBRATE, CalibrateWish(random_tokens, experts=experts))
        stand_ready()
        return known, model, experts
    refuse_idle(given, CALIBRATE, CalibrateWish(random_tokens, lends=False))
    stand_ready()
    checkpoint = described(stored, ConverterOptions())
    assert checkpoint.description is not None  # noqa: S101 - it is foreign
    experts = experts_in(checkpoint.description.header)
    wish = CalibrateWish(random_tokens, lends=False, experts=experts)
    refuse_idle(given, CALIBRATE, wish)
    for remark in checkpoint.remarks:
        tell.note(remark)
    return checkpoint, open_model(checkpoint), experts


def _vocabulary(model: Model) -> int:
    (table,) = (target for target in model.targets if target.name == "token_embd.weight")
    return table.shape[0]


def _require_file(out: Path, *, overwrite: bool) -> None:
    """Refuse a place where no file can be written, or where one lies that may not be replaced."""
    require_writable(out, overwrite=overwrite)
    if out.is_file():
        try:
            load_imatrix(out)
        except ImatrixError:
            raise OutputError(
                f"{out} is not an importance matrix, and --overwrite replaces nothing else; name "
                "another file with -o."
            ) from None


def _require_drawable(plot: Path | None) -> None:
    if plot is not None:
        from quantkit.calibration.plot import require_drawable

        require_drawable(plot)


def _finish(
    made: "Calibration | Gathered", unit: str, min_tokens: int, plot: Path | None
) -> Calibrated:
    """Draw where the tokens went, if that is wanted, and say what the matrix was made from."""
    if plot is not None:
        from quantkit.calibration.plot import draw

        draw(made.routing, plot, f"Routing over {made.chunks} chunks of {made.context} tokens")
    return Calibrated(
        made.path,
        made.chunks,
        made.total,
        made.context,
        made.text,
        made.perplexity,
        made.resumed,
        unit,
        made.routing,
        min_tokens,
    )
