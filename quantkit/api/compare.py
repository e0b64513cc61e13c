"""`quantkit.compare`: how far artifacts are from the model they were made from."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.api.checked import checked, require_at_least
from quantkit.api.reporter import reporter
from quantkit.core.errors import GGUFError, OutputError, QuantkitError
from quantkit.core.packages import require
from quantkit.core.writing import require_new, write_file
from quantkit.verification.compare import Comparison
from quantkit.verification.compare import compare as measure
from quantkit.verification.comparisons import as_numbers, more_windows
from quantkit.verification.kept import FILE
from quantkit.verification.origin import find_origin
from quantkit.verification.subjects import (
    REFERENCE_FOLDER,
    Subject,
    build_reference,
    export_all,
    exports_beside,
    holds_artifacts,
    is_quantized,
    open_subject,
    outline_subjects,
    pick_reference,
)


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """What is drawn of a comparison.

    ``layers`` is an artifact whose error is shown tensor by tensor, ``html`` the page that
    everything goes into, ``plots`` the folder of the pictures, which is made if it is not there.
    Files that are there already are replaced only with ``overwrite``.
    """

    layers: Path | None = None
    html: Path | None = None
    plots: Path | None = None
    overwrite: bool = False

    @property
    def is_given(self) -> bool:
        """Whether anything is drawn."""
        return (self.layers, self.html, self.plots) != (None, None, None)

    @property
    def drawn_into(self) -> Path | None:
        """The folder of the pictures; None where the page alone has them."""
        return self.plots or (Path.cwd() if self.html is None else None)


_NO_PICTURES = PictureOptions()


def compare(
    artifacts: str | Path | Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    checkpoint: str | Path | None = None,
    text: str | Path | None = None,
    chunks: int | None = None,
    context: int = 512,
    threads: int | None = None,
    gpu_layers: int = 0,
    timeout: float | None = None,
    pictures: PictureOptions = _NO_PICTURES,
    note: Callable[[str], None] | None = None,
) -> Comparison:
    """Measure artifacts against the unquantized reference, as llama.cpp runs them, and judge.

    An artifact that crashes llama.cpp fails alone; see `Comparison.raise_if_failed`. The figures
    are kept in each folder of artifacts, as ``compare.json``.

    Args:
        artifacts: folders that `quantkit.build` wrote, GGUF files, or one of these.
        reference: the unquantized GGUF, or the name of a quant among the artifacts, such as
            ``q8_0``; by default what they were built from, or what lies beside them.
        checkpoint: what to build an absent reference from, into a folder beside the artifacts.
        text: a UTF-8 file; by default Python's documentation.
        chunks: windows of the text at most; by default all.
        context: tokens per window.
        threads: for llama.cpp; by default the cores this process may use.
        gpu_layers: how many layers llama.cpp puts on a GPU.
        timeout: seconds per artifact; by default it grows with its size and the text's.
        pictures: what is drawn.
        note: told what comes next, and where figures and pictures are.

    Raises:
        CompareError: the reference cannot be measured, or the text cannot be read.
        GGUFError: there is no reference, or an artifact is not there or unsound.
        OutputError: pictures cannot be written where they should be.
        NativeError: llama.cpp is not installed, or does not run on this machine at all.

    """
    pictures = checked(pictures, PictureOptions)
    require_at_least(1, chunks=chunks, context=context, threads=threads)
    require_at_least(0, gpu_layers=gpu_layers)
    tell = reporter(None, note).note
    places = [Path(p) for p in ([artifacts] if isinstance(artifacts, str | Path) else artifacts)]
    if not places:
        raise QuantkitError("Give what to compare: folders that quantkit built, or GGUF files.")
    _refuse_pictures(pictures)
    outlined = outline_subjects(places)
    # Before anything is exported: there may be none.
    wish = None if reference is None else str(reference)
    source = None if checkpoint is None else Path(checkpoint)
    chosen = _reference(outlined, wish, source, places, tell)
    with exports_beside(places[0]) as exports:
        subjects = export_all(
            outlined, exports, lambda name: tell(f"Exporting {name}, so that llama.cpp can run it")
        )
        chosen = dict(zip(outlined, subjects, strict=True)).get(chosen, chosen)
        if is_quantized(chosen):
            tell(
                f"The reference {chosen.name} is quantized itself: its own error is not in the "
                "figures."
            )
        result = measure(
            subjects,
            chosen,
            text=None if text is None else Path(text),
            context=context,
            windows=chunks,
            threads=threads,
            gpu_layers=gpu_layers,
            timeout=timeout,
            report=lambda what: tell(f"Measuring {what}"),
        )
        _keep(result, places, tell)
        _draw(result, pictures, tell)
    return result


def _reference(
    subjects: Sequence[Subject],
    wish: str | None,
    checkpoint: Path | None,
    places: Sequence[Path],
    note: Callable[[str], None],
) -> Subject:
    """What artifacts are compared with: what is asked for, else their source, else what is there.

    Raises:
        GGUFError: there is nothing.

    """
    missing = ""
    if wish is None and checkpoint is None and (origin := find_origin(places)) is not None:
        if origin.subject is not None:
            return origin.subject
        missing = origin.missing
    if checkpoint is not None and checkpoint.suffix == ".gguf" and wish is None:
        return open_subject(checkpoint)
    found = pick_reference(subjects, wish)
    if found is not None:
        if checkpoint is not None:
            note(f"{found.name} is the reference; --checkpoint is not needed to build one.")
        if missing:
            note(f"{missing}; {found.name} is the reference instead.")
        return found
    first = places[0]
    folder = (first if first.is_dir() else first.absolute().parent) / REFERENCE_FOLDER
    if checkpoint is None:
        kept = sorted(folder.glob("*.gguf")) if wish is None else []
        if kept:
            found = pick_reference([open_subject(file) for file in kept], None)
        if found is not None:
            return found
        if missing:
            raise GGUFError(f"{missing}; give it with --reference, or build bf16 of it as well.")
        what = wish or "unquantized (f32, bf16 or f16) artifact"
        raise GGUFError(
            f"There is no {what} to compare with; give one with --reference, or the checkpoint "
            "with --checkpoint to build it from."
        )
    note(f"Building the reference into {folder}; it can be deleted afterwards.")
    return build_reference(checkpoint, folder, wish)


def _keep(result: Comparison, places: Sequence[Path], note: Callable[[str], None]) -> None:
    """Leave the figures in each folder of artifacts, where quantkit publish looks for them.

    Better ones of the same artifacts stay.
    """
    for folder in places:
        if not (folder.is_dir() and holds_artifacts(folder)):
            continue
        if windows := more_windows(folder / FILE, result):
            note(
                f"{folder / FILE} stays as it is: it is over {windows} windows of the same text, "
                f"and this one over {result.windows}."
            )
            continue
        try:
            partial = folder / f".{FILE}.partial"
            write_file(partial, json.dumps(as_numbers(result), indent=2).encode())
            partial.replace(folder / FILE)  # in the place of a link, too
        except OSError as error:
            note(f"{folder / FILE} cannot be written ({error.strerror}); the figures are not kept.")
        else:
            note(f"Kept in {folder / FILE}.")


def _refuse_pictures(wish: PictureOptions) -> None:
    """Refuse pictures that could not be drawn in the end, before anything is measured."""
    if not wish.is_given:
        return
    require("matplotlib", "matplotlib", "plot", "Drawing pictures")
    for out in (wish.html, wish.plots):
        if out is not None and not out.absolute().parent.is_dir():
            raise OutputError(f"{out.parent} does not exist; create it first.")
    if wish.html is not None and wish.html.is_dir():
        raise OutputError(f"{wish.html} is a folder; name the page to write.")
    if wish.plots is not None and wish.plots.exists() and not wish.plots.is_dir():
        raise OutputError(f"{wish.plots} is a file; name a folder for the pictures.")
    if wish.layers is not None:
        open_subject(wish.layers)
    from quantkit.verification.pictures import all_pictures

    folder = wish.drawn_into
    drawn = all_pictures(folder) if folder is not None else []
    require_new(wish.html, *drawn, overwrite=wish.overwrite)


def _draw(result: Comparison, wish: PictureOptions, note: Callable[[str], None]) -> None:
    if not wish.is_given:
        return
    from quantkit.verification.layers import weight_errors
    from quantkit.verification.pictures import draw_all
    from quantkit.verification.report import write_page

    errors, layers = None, wish.layers.name if wish.layers is not None else ""
    if wish.layers is not None:
        note(f"Reading the weights of {layers}")
        errors = weight_errors(open_subject(wish.layers).gguf, result.reference.gguf)
    with tempfile.TemporaryDirectory(prefix="quantkit-") as temporary:
        folder = wish.drawn_into or Path(temporary)
        folder.mkdir(exist_ok=True)
        pictures = draw_all(result, errors, layers, folder)
        if wish.html is not None:
            write_page(result, errors, layers, pictures, wish.html)
            note(f"Wrote {wish.html}.")
        if wish.html is None or wish.plots is not None:
            note("Drew " + ", ".join(str(path) for path in pictures) + ".")
