"""GGUF files that are there, here or on the Hub: what they are, and what can be built of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from quantkit.checkpoint.gguf import Header, HeaderTensor, read_header
from quantkit.checkpoint.names import HubName, shard_names
from quantkit.core.errors import GGUFError
from quantkit.core.files import open_file
from quantkit.fitting.model import SizedModel
from quantkit.fitting.shape import Tensors, count_active, is_unquantized, shape_of_header
from quantkit.fitting.variants import Buildable, PlanOptions, Variant, plan_variants
from quantkit.formats.gguf.metadata import describe_checkpoint
from quantkit.planning.recognize import quant_of
from quantkit.verification.hollow import HeaderOnly


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one GGUF, the first one first.

    ``places`` have the headers: the files themselves, or for ``repo`` on the Hub what was fetched.
    """

    names: tuple[PurePosixPath, ...]
    places: tuple[Path, ...]
    sizes: tuple[int, ...]
    headers: tuple[Header, ...]
    repo: str | None = None

    @property
    def tensors(self) -> list[HeaderTensor]:
        """The tensors of all files."""
        return [tensor for header in self.headers for tensor in header.tensors]


def files_here(path: Path) -> Files:
    """A GGUF file, or all shards of a split one.

    Raises:
        GGUFError: one is missing or unsound.

    """
    places = tuple(shard_names(path))
    for place in places:
        if not place.is_file():
            raise GGUFError(f"{place} does not exist; give the path of a whole GGUF.")
    sizes = tuple(map(size_of, places))
    names = tuple(PurePosixPath(place.name) for place in places)
    return Files(names, places, sizes, tuple(map(read_header, places, sizes)))


def files_on_hub(hub: HubName) -> Files:
    """The same of a GGUF on the Hub, of which only the headers are fetched.

    Raises:
        CheckpointError: the repository cannot be reached, or has no such file.
        GGUFError: a file is unsound.

    """
    from quantkit.checkpoint.remote_gguf import fetch_gguf_header

    names = tuple(shard_names(PurePosixPath(hub.file or "")))
    fetched = [fetch_gguf_header(hub.repo_id, str(name), hub.revision) for name in names]
    places, sizes = tuple(place for place, _ in fetched), tuple(size for _, size in fetched)
    return Files(names, places, sizes, tuple(map(read_header, places, sizes)), hub.repo_id)


def subject_of(files: Files, wishes: PlanOptions) -> SizedModel:
    """A GGUF as what can be built of it where it is unquantized, else as what it is.

    Raises:
        GGUFError: it is not a model, or none of the quants asked for.
        PlanError: a quant that is asked for cannot be made of it.

    """
    found = as_it_is(files)
    return _buildable(found, files, wishes) if found.unquantized else choose(found, wishes)


def as_it_is(files: Files) -> SizedModel:
    """A GGUF as the one variant that it is.

    Raises:
        GGUFError: it is not a model.

    """
    first, metadata, rows = files.places[0], files.headers[0].metadata, files.tensors
    tensors = tensors_of(rows)
    quant = quant_of(files.headers)
    n_bytes = sum(files.sizes)
    is_here = files.repo is None
    variant = Variant(
        name=quant.name if quant else "as built",
        tensors=tensors,
        sizes=tuple(tensor.n_bytes for tensor in rows),
        file_name=files.names[0].name,
        n_files=len(files.names),
        file_bytes=n_bytes,
        file_is_exact=True,
        download_bytes=0 if is_here else n_bytes,
        source_bytes=0,
        needs_imatrix=False,
        path=str(first) if is_here else "",
    )
    title = str(metadata.get("general.name", files.names[0].stem))
    return SizedModel(
        title=title if is_here else f"{files.repo}/{files.names[0]}",
        origin="gguf" if is_here else "hub",
        shape=shape_of_header(first, metadata, rows),
        variants=(variant,),
        n_parameters=tensors.n_elements,
        n_active=count_active(first, metadata, tensors),
        model=None,
        gguf=first.absolute() if is_here else None,
        hollow=() if is_here else tuple(_hollow(files)),
        unquantized=is_unquantized(rows),
    )


def open_artifact(path: Path) -> SizedModel:
    """A GGUF file, or all shards of a split one, as the one variant that it is.

    Raises:
        GGUFError: it is missing or unsound, or no model.

    """
    return as_it_is(files_here(path))


def choose(subject: SizedModel, wishes: PlanOptions) -> SizedModel:
    """The subject with those of its variants that are asked for, or as it is if none are.

    Raises:
        GGUFError: there are none of these.

    """
    if not wishes.quants:
        return subject
    wanted = {quant.name for quant in wishes.quants}
    variants = tuple(variant for variant in subject.variants if variant.name in wanted)
    if not variants:
        there = ", ".join(variant.name for variant in subject.variants) or "no GGUF"
        raise GGUFError(
            f"{subject.title} is there as {there}, and not as {' or '.join(sorted(wanted))}; leave "
            "out --quant, or build it."
        )
    return replace(subject, variants=variants)


def _buildable(found: SizedModel, files: Files, wishes: PlanOptions) -> SizedModel:
    """An unquantized GGUF as everything that can be built of it."""
    from quantkit.checkpoint.gguf_source import describe_gguf, join_shards

    places, here = files.places, None
    if files.repo is not None:
        places, here = tuple(Path(files.repo, name) for name in files.names), files.places[0]
    checkpoint = join_shards(places, files.headers, files.sizes, here)
    model = describe_gguf(checkpoint)
    source = found.variants[0].file_bytes
    download = source if files.repo is not None else 0
    buildable = Buildable(model, describe_checkpoint(checkpoint, model), source, download)
    return replace(found, variants=plan_variants(buildable, wishes), buildable=buildable)


def tensors_of(rows: Sequence[HeaderTensor]) -> Tensors:
    """The tensors of a header, or of several."""
    return Tensors(tuple(row.name for row in rows), tuple(row.shape for row in rows))


def size_of(file: Path) -> int:
    """Bytes of a file.

    Raises:
        GGUFError: it cannot be looked at.

    """
    try:
        return file.stat().st_size
    except OSError as error:
        raise GGUFError(f"{file} cannot be read: {error.strerror}.") from None


def _hollow(files: Files) -> list[HeaderOnly]:
    """The files with their headers alone, as llama.cpp is asked about them."""
    found = []
    for name, place, size, header in zip(
        files.names, files.places, files.sizes, files.headers, strict=True
    ):
        with open_file(place, error=GGUFError) as stream:
            found.append(HeaderOnly(name.name, stream.read(header.data_offset), size))
    return found
