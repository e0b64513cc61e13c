"""What is compared: artifacts as GGUF files that llama.cpp can run, and their reference."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from quantkit.building.entries import require_sound
from quantkit.building.manifest import NAME, file_of, read_manifest, sound_entries
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import is_artifact
from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.names import is_first_file, without_shard
from quantkit.core.errors import GGUFError, QuantkitError
from quantkit.core.files import has_file
from quantkit.planning.quants import all_quants, find_quants, is_size
from quantkit.planning.recognize import quant_of
from quantkit.verification.smoke import artifact_files

_UNQUANTIZED = ("f32", "bf16", "f16")
REFERENCE_FOLDER = ".quantkit-reference"


@dataclass(frozen=True, slots=True)
class Subject:
    """An artifact and the GGUF that llama.cpp runs for it; ``how`` says which way that is."""

    name: str
    gguf: Path
    quant: str | None
    n_bytes: int
    n_parameters: int
    how: str = "as it is"

    @property
    def title(self) -> str:
        """What tables call it: its quant, or the ``3.42bpw`` that the name of a searched one has.

        Such a file states the file type of its base, and is another mixture.
        """
        size = without_shard(self.name).rpartition("-")[2]
        return size if is_size(size) else self.quant or self.name


def told_apart(subjects: Sequence[Subject]) -> list[str]:
    """The titles of subjects; where two have the same, their names, and then their paths."""
    shown = [[s.title, without_shard(s.name), str(s.gguf)] for s in subjects]
    for level in (1, 2):
        titles = [names[0] for names in shown]
        for names in shown:
            if titles.count(names[0]) > 1:
                names[0] = names[level]
    return [names[0] for names in shown]


def outline_subjects(paths: Iterable[Path]) -> list[Subject]:
    """The artifacts in files and folders, best quant first within a folder, each once.

    A folder's manifest (``quantkit.json``) names its artifacts; without one, all its GGUF files
    are taken. Of an artifact for transformers ``gguf`` is its folder: `export_all` exports it.

    Args:
        paths: GGUF files, folders that hold artifacts, artifacts that are folders themselves.

    Raises:
        GGUFError: a path or a file that a manifest names is not there, or a header is unsound.
        OutputError: a manifest is damaged.

    """
    found: dict[Path, Subject] = {}
    for path in paths:
        if path.is_dir() and not is_quantized_folder(path):
            subjects = [_outline(file) for file in artifacts_in(path)]
            rank = {name: place for place, name in enumerate(all_quants())}
            subjects.sort(key=lambda s: (rank.get(s.quant or "", len(rank)), s.name))
        else:
            subjects = [_outline(path)]
        for subject in subjects:
            found.setdefault(subject.gguf, subject)
    return list(found.values())


def _outline(path: Path) -> Subject:
    if not path.is_dir():
        return open_subject(path)
    entry = sound_entries(path.parent).get(path.name, {})
    return Subject(path.name, path, entry.get("quant"), 0, 0)


def export_all(
    subjects: Iterable[Subject], exports: Path, report: Callable[[str], None] = lambda _: None
) -> list[Subject]:
    """The same, with what is for transformers by way of a GGUF.

    Args:
        subjects: as `outline_subjects` gives them.
        exports: where to put the GGUF of an artifact that is none.
        report: called with the name of what is exported.

    Raises:
        CheckpointError: an artifact for transformers is incomplete or damaged.

    """

    def export(subject: Subject) -> Subject:
        if not subject.gguf.is_dir():
            return subject
        report(subject.name)
        return export_subject(subject.gguf, exports)

    return [export(subject) for subject in subjects]


def find_subjects(
    paths: Iterable[Path], exports: Path, report: Callable[[str], None] = lambda _: None
) -> list[Subject]:
    """What `outline_subjects` finds, exported by `export_all`."""
    return export_all(outline_subjects(paths), exports, report)


def holds_artifacts(folder: Path) -> bool:
    """Whether a folder is what a build left, or holds GGUF files."""
    return has_file(folder / NAME, error=GGUFError) or bool(next(folder.glob("*.gguf"), None))


def artifacts_in(folder: Path) -> list[Path]:
    """The artifacts in a folder: GGUF files, of split ones the first, and folders.

    The manifest (``quantkit.json``) names them; without one, all GGUF files of models are taken. A
    model's vision or audio part is none.

    Raises:
        GGUFError: there is none, or the header of a file is unsound.
        OutputError: the manifest is damaged.

    """
    if has_file(folder / NAME, error=GGUFError):
        manifest = read_manifest(folder)
        require_sound(manifest, folder / NAME)
        entries = [
            (name, entry)
            for name, entry in manifest["artifacts"].items()
            if entry.get("takes") is None
        ]
        first = {name: file_of(folder, entry["files"][0]["name"]) for name, entry in entries}
        files = [file if file.suffix == ".gguf" else folder / name for name, file in first.items()]
    else:
        files = [
            file
            for file in sorted(folder.glob("*.gguf"))
            if is_first_file(file.name) and _is_model(file)
        ]
    if not files:
        raise GGUFError(f"{folder} holds no artifact; build some with quantkit build.")
    return files


def projectors_in(folder: Path) -> list[Path]:
    """The vision or audio parts that lie in a folder beside a model's files.

    Raises:
        GGUFError: the header of a file is unsound.
        OutputError: the manifest is damaged.

    """
    if has_file(folder / NAME, error=GGUFError):
        entries = sound_entries(folder).values()
        parts = [entry for entry in entries if entry.get("takes") is not None]
        return [file_of(folder, entry["files"][0]["name"]) for entry in parts]
    return [file for file in sorted(folder.glob("*.gguf")) if is_projector(file)]


def is_projector(file: Path) -> bool:
    """Whether a GGUF is the vision or audio part of a model.

    Raises:
        GGUFError: its header is unsound.

    """
    return bool(read_header(file).metadata.get("general.type") == "mmproj")


def _is_model(file: Path) -> bool:
    """Whether a GGUF is a model: calibration leaves an importance matrix beside the artifacts."""
    return bool(read_header(file).metadata.get("general.type", "model") == "model")


def open_subject(path: Path) -> Subject:
    """One GGUF artifact: a file or the first shard of a split one.

    Raises:
        GGUFError: it is not there, or no sound GGUF.

    """
    if path.is_dir():
        raise GGUFError(f"{path} is a folder without artifacts that llama.cpp can run.")
    files = artifact_files(path)
    headers = [read_header(file) for file in files]
    quant = quant_of(headers)
    return Subject(
        name=files[0].name,
        gguf=files[0],
        quant=quant.name if quant else None,
        n_bytes=sum(file.stat().st_size for file in files),
        n_parameters=sum(prod(t.shape) for header in headers for t in header.tensors),
    )


@contextmanager
def exports_beside(artifact: Path) -> Iterator[Path]:
    """A folder for GGUF files that are needed for a while; gone with the block.

    It lies beside the artifact, or in the folder of artifacts, where files of that size are
    expected, and is made by whoever writes to it.
    """
    is_folder_of_artifacts = artifact.is_dir() and not (artifact / "config.json").is_file()
    beside = artifact if is_folder_of_artifacts else artifact.parent
    exports = beside.absolute() / f".quantkit-exports-{os.getpid()}"
    try:
        yield exports
    finally:
        shutil.rmtree(exports, ignore_errors=True)


def export_subject(artifact: Path, exports: Path) -> Subject:
    """An artifact for transformers, by way of a GGUF of its weights as they are dequantized.

    16 bits hold them but for a rounding that is small beside that of any quant.

    Raises:
        CheckpointError: it is incomplete, damaged or of an unknown format.

    """
    from quantkit.building import engine
    from quantkit.building.work import prepare_export
    from quantkit.verification.machine import usable_cores

    work = prepare_export(artifact, find_quants(["f16"]))
    [made] = engine.build(work, exports / artifact.name, jobs=usable_cores(), max_memory=2**30)
    entry = sound_entries(artifact.parent).get(artifact.name, {})
    return replace(
        open_subject(made.path),
        name=artifact.name,
        quant=entry.get("quant"),
        n_bytes=sum(file.stat().st_size for file in artifact.iterdir() if file.is_file()),
        how="dequantized to f16 by quantkit export",
    )


def is_quantized_folder(path: Path) -> bool:
    """Whether a folder is itself an artifact for transformers."""
    return (path / "config.json").is_file() and is_artifact(path, or_source=True)


def pick_reference(subjects: Sequence[Subject], wish: str | None) -> Subject | None:
    """The reference: what ``wish`` names, else the least rounded unquantized artifact, if any.

    Args:
        subjects: what is compared.
        wish: a GGUF file, or a quant's name such as ``q8_0`` for models whose unquantized
            weights do not fit.

    Raises:
        QuantkitError: the wish is neither.

    """
    by_quant = {subject.quant: subject for subject in reversed(subjects)}
    if wish is None:
        return next((by_quant[name] for name in _UNQUANTIZED if name in by_quant), None)
    if Path(wish).is_file():
        return open_subject(Path(wish))
    if "/" in wish or wish.endswith(".gguf"):
        raise GGUFError(f"{wish} does not exist; --reference takes a GGUF file or a quant's name.")
    quants = find_quants([wish])
    if len(quants) != 1:
        raise QuantkitError(f"--reference takes one quant, and {wish} is a group.")
    return by_quant.get(quants[0].name)


def is_quantized(subject: Subject) -> bool:
    """Whether a reference is itself an approximation."""
    return subject.quant not in _UNQUANTIZED


def exact_quant(checkpoint: Checkpoint) -> str:
    """The name of the smallest quant that holds a checkpoint's weights as they are stored."""
    kinds = frozenset(tensor.dtype for tensor in checkpoint.tensors.values())
    return {frozenset({"BF16"}): "bf16", frozenset({"F16"}): "f16"}.get(kinds, "f32")


def build_reference(checkpoint: Path | Checkpoint, folder: Path, wish: str | None) -> Subject:
    """Build the reference of a checkpoint into ``folder``; what already exists is kept.

    Without a wish it is exact: bf16 or f16 for a checkpoint stored in that, else f32.
    """
    from quantkit.building import engine
    from quantkit.building.work import prepare
    from quantkit.checkpoint.open import open_checkpoint
    from quantkit.verification.machine import usable_cores

    source = open_checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    # Widened, blocks of four bits are the same numbers.
    work = prepare(source, find_quants([exact_quant(source) if wish is None else wish]))
    [artifact] = engine.build(work, folder, jobs=usable_cores(), max_memory=2**30)
    path = artifact.path
    return open_subject(path if path.is_file() else sorted(path.glob("*.gguf"))[0])
