"""What MODEL is: a folder, a GGUF, a repo on the Hub or a bundled name, and its quants' tensors.

A folder may be a checkpoint, its config.json alone, what a build left, or one of its artifacts.
What only some of these need is imported where one is opened: a bundled model needs least.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from quantkit.checkpoint.gguf import Header, HeaderTensor, read_header
from quantkit.checkpoint.names import folder_name, index_name, parse_hub_name, shard_names
from quantkit.core.errors import CheckpointError, GGUFError, UnknownArchitectureError
from quantkit.core.files import open_file
from quantkit.core.profiles import load_profile, profiles_folder
from quantkit.families import describe, is_known
from quantkit.families.model import Decoder, Model
from quantkit.fit.bare import bare_file, header_of, shape_of, unquantized_file
from quantkit.fit.shape import Shape, Tensors, count_active, is_unquantized, shape_of_header
from quantkit.fit.variants import Buildable, Variant, Wishes, plan_variants, variant_of
from quantkit.formats.gguf.layout import PlannedFile
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries, describe_checkpoint
from quantkit.plan.recognize import quant_of
from quantkit.verify.hollow import Hollow

if TYPE_CHECKING:
    from quantkit.checkpoint.checkpoint import Checkpoint, Description

__all__ = [
    "Buildable",
    "Stored",
    "Subject",
    "Variant",
    "Wishes",
    "bundled_models",
    "open_artifact",
    "open_subject",
    "shape_of",
    "variant_of",
]

Origin = Literal["bundled", "config", "checkpoint", "hub", "gguf", "artifacts"]

# A vocabulary in a GGUF: per token its length (8 bytes), score (4) and type (4), and its text,
# 6.4 bytes on average in Mistral's first tokenizer (mistral-common's tokenizer.model.v1: 717 KB).
_VOCABULARY_BYTES_PER_TOKEN = 22.4
_USUAL = Wishes()
_BF16 = 2  # bytes per weight of the bundled models' checkpoints


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in a format that transformers loads.

    ``n_bytes`` of weights are ``exact`` or ``modelled``; None where the format cannot hold the
    model, and ``note`` says why.
    """

    name: str
    n_bytes: int | None
    label: Literal["exact", "modelled"]
    note: str


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and its variants, largest first.

    ``hollow`` are the files that llama.cpp loads in a dry run; there are none where ``gguf`` is
    here as a whole. ``model`` is None for a GGUF, which may be ``unquantized``, and for what
    llama.cpp's converter describes, which is a GGUF yet to be made; ``describer`` is then that
    converter's version. ``stored`` are folders for transformers that were found; where there are
    none, a model is shown as it would be stored. ``n_fetched`` bytes of a checkpoint came over the
    network. ``projector`` are the tensor bytes of its vision or audio part, of which there is one
    beside any variant. ``buildable`` is what its variants are planned from, None where they are
    there already.
    """

    title: str
    origin: Origin
    shape: Shape
    variants: tuple[Variant, ...]
    n_parameters: int
    n_active: int
    model: Decoder | None
    gguf: Path | None
    hollow: tuple[Hollow, ...]
    stored: tuple[Stored, ...] = ()
    unquantized: bool = False
    describer: str | None = None
    n_fetched: int = 0
    projector: int = 0
    buildable: Buildable | None = None

    @property
    def is_as_it_is(self) -> bool:
        """Whether it is a GGUF that is quantized already, of which nothing is planned."""
        return self.origin in ("gguf", "hub") and self.model is None and not self.unquantized


def bundled_models() -> tuple[str, ...]:
    """The names of the models that need no download and no network."""
    return tuple(sorted(file.stem for file in (profiles_folder() / "models").glob("*.toml")))


def open_subject(name: str, wishes: Wishes = _USUAL) -> Subject:
    """Find out what ``name`` is and read its headers, never its weights.

    Args:
        name: a checkpoint folder or its config.json, a GGUF file, a folder of artifacts or one of
            them, a bundled name, or a Hub id: ``owner/repo``, or ``owner/repo/file.gguf``, either
            with ``@revision``.
        wishes: which variants to plan, and how. A GGUF that is quantized is the one variant that it
            is.

    Raises:
        CheckpointError: there is no such model, or it is incomplete.
        GGUFError: the GGUF cannot be read or is not one, or is none of the quants asked for.
        ConverterError: only llama.cpp's converter can tell, and it cannot be had, or cannot.

    """
    subject = _open(name, wishes)
    if subject.describer is None and wishes.converter.is_for_converter:
        from quantkit.checkpoint.open import refuse_idle

        refuse_idle(wishes.converter, name)
    return subject


def _open(name: str, wishes: Wishes) -> Subject:
    path = Path(name)
    if path.is_dir():
        return _from_folder(path, wishes)
    if path.name == "config.json" and path.is_file():
        return _from_config(path, wishes)
    if path.exists() or (path.suffix.lower() == ".gguf" and "/" not in name):
        files, headers, sizes = _read_shards(path)
        found = _from_gguf([file.name for file in files], files, headers, sizes, "gguf")
        if found.unquantized:
            return _from_source(found, files, headers, sizes, wishes)
        return _chosen(found, wishes)
    if name.lower() in bundled_models():
        return _from_profile(name.lower(), wishes)
    hub = parse_hub_name(name)
    if hub is None:
        raise CheckpointError(
            f"There is no model {name!r}; give a folder, a GGUF file, a Hub id such as "
            f"mistralai/Mixtral-8x7B-v0.1, or one of {', '.join(bundled_models())}."
        )
    return _from_hub(hub.repo_id, hub.file, hub.revision, wishes)


def _from_hub(
    repo: str,
    file: str | None,
    revision: str | None,
    wishes: Wishes,
) -> Subject:
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.open import open_source
    from quantkit.checkpoint.remote_gguf import fetch_gguf_header

    if file is None:
        checkpoint = open_source(f"{repo}@{revision}" if revision else repo, wishes.converter)
        assert isinstance(checkpoint, Checkpoint)  # noqa: S101 - no path has that name
        subject = _from_checkpoint(checkpoint, "hub", wishes)
        n_fetched = checkpoint.repo.n_fetched if checkpoint.repo is not None else 0
        return replace(subject, title=repo, n_fetched=n_fetched)
    remote = shard_names(PurePosixPath(file))
    fetched = [fetch_gguf_header(repo, str(name), revision) for name in remote]
    paths, sizes = [path for path, _ in fetched], [size for _, size in fetched]
    headers = list(map(read_header, paths, sizes))
    subject = _from_gguf([name.name for name in remote], paths, headers, sizes, "hub")
    subject = replace(subject, title=f"{repo}/{file}")
    if subject.unquantized:
        files = [Path(repo, name) for name in remote]
        return _from_source(subject, files, headers, sizes, wishes, paths[0])
    return _chosen(subject, wishes)


def _from_profile(name: str, wishes: Wishes) -> Subject:
    profile = load_profile(f"models/{name}.toml")
    model = describe(profile["config"])
    source = profile.get("source", {}).get("file_bytes")
    return _from_shapes(model, profile["title"], "bundled", wishes, source)


def _from_config(file: Path, wishes: Wishes) -> Subject:
    """A model whose config.json alone is here, and perhaps its weights' index."""
    from quantkit.checkpoint.folder import list_folder, read_json
    from quantkit.checkpoint.shards import read_weight_map

    config = read_json(file)
    if not is_known(config):
        raise UnknownArchitectureError(
            f"{file} is of the architecture {config['architectures'][0]}, which llama.cpp's "
            "converter describes from the headers of weight files; give the whole folder, or the "
            "model's name on the Hub."
        )
    index = file.parent / index_name(list_folder(file.parent))
    names = read_weight_map(index) if index.is_file() else ()
    model = describe(config, names)
    return _from_shapes(model, folder_name(file.parent), "config", wishes)


def _from_shapes(
    model: Decoder, title: str, origin: Origin, wishes: Wishes, source_bytes: int | None = None
) -> Subject:
    """A model without its tokenizer, whose share of a header is estimated."""
    metadata = ModelMetadata(title, bare_entries(model))
    vocabulary = int(model.hparams.vocab_size * _VOCABULARY_BYTES_PER_TOKEN)
    source = model.n_parameters * _BF16 if source_bytes is None else source_bytes
    return _from_model(model, metadata, origin, wishes, title, source, vocabulary)


def _from_folder(path: Path, wishes: Wishes) -> Subject:
    from quantkit.checkpoint.folder import is_artifact
    from quantkit.checkpoint.open import holds_weights, open_checkpoint
    from quantkit.verify.subjects import holds_artifacts

    if holds_weights(path):
        if is_artifact(path):
            return _from_artifact(path)
        return _from_checkpoint(open_checkpoint(path, wishes.converter), "checkpoint", wishes)
    if (path / "config.json").is_file():
        return _from_config(path / "config.json", wishes)
    if holds_artifacts(path):
        return _from_artifacts(path, wishes)
    return _from_checkpoint(open_checkpoint(path), "checkpoint", wishes)  # it says what is missing


def _from_artifacts(folder: Path, wishes: Wishes) -> Subject:
    """What a build left: GGUF files are variants of one model, folders are for transformers."""
    from quantkit.verify.subjects import artifacts_in, projectors_in

    found = artifacts_in(folder)
    ggufs = [open_artifact(path) for path in found if not path.is_dir()]
    folders = [_from_artifact(path) for path in found if path.is_dir()]
    first, *others = ggufs or folders
    for other in others:
        if other.shape != first.shape:
            raise GGUFError(
                f"{folder} holds {first.title} and {other.title}, which are different models; give "
                "one file."
            )
    variants = [variant for subject in ggufs for variant in subject.variants]
    whole = replace(
        first,
        origin="artifacts",
        variants=tuple(sorted(variants, key=lambda variant: -variant.tensor_bytes)),
        stored=tuple(stored for subject in folders for stored in subject.stored),
        projector=max(map(_weigh_projector, projectors_in(folder)), default=0),
    )
    return _chosen(whole, wishes)


def _weigh_projector(file: Path) -> int:
    return sum(tensor.n_bytes for tensor in read_header(file).tensors)


def _from_artifact(folder: Path) -> Subject:
    """A folder for transformers: what it stores is exact, and it has no variants."""
    from quantkit.checkpoint.folder import open_quantized

    checkpoint = open_quantized(folder)
    method = checkpoint.config["quantization_config"].get("quant_method")
    n_bytes = sum(tensor.n_bytes for tensor in checkpoint.tensors.values())
    title = folder_name(folder)
    stored = (Stored(title, n_bytes, "exact", str(method)),)
    if not is_known(checkpoint.config):
        return replace(_from_dequantized(folder), title=title, stored=stored)
    model = describe(checkpoint.config, checkpoint.tensors)
    metadata = ModelMetadata(title, bare_entries(model))
    bare = _from_model(model, metadata, "artifacts", Wishes(()), title, 0, 0)
    return replace(bare, buildable=None, stored=stored)


def _from_dequantized(folder: Path) -> Subject:
    """A folder for transformers as llama.cpp's converter describes what it dequantizes to."""
    from quantkit.formats.dequantized import as_checkpoint

    view = as_checkpoint(folder, _USUAL.converter)
    assert view.description is not None  # noqa: S101 - it was described
    subject = _from_description(view, view.description, "artifacts", Wishes(()))
    return replace(subject, unquantized=False, buildable=None)


def open_artifact(path: Path) -> Subject:
    """A GGUF file, or all shards of a split one, as the one variant that it is.

    Raises:
        GGUFError: it is missing or unsound, or no model.

    """
    files, headers, sizes = _read_shards(path)
    return _from_gguf([file.name for file in files], files, headers, sizes, "gguf")


def _chosen(subject: Subject, wishes: Wishes) -> Subject:
    """The subject with those of its variants that are asked for, or as it is if none are."""
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


def _from_checkpoint(checkpoint: "Checkpoint", origin: Origin, wishes: Wishes) -> Subject:
    from quantkit.checkpoint.open import open_decoder

    if checkpoint.description is not None:
        return _from_description(checkpoint, checkpoint.description, origin, wishes)
    model = open_decoder(checkpoint)
    metadata = describe_checkpoint(checkpoint, model)
    source = sum(tensor.n_bytes for tensor in checkpoint.tensors.values())
    title = checkpoint.name
    return _from_model(model, metadata, origin, wishes, title, source, 0)


def _from_description(
    checkpoint: "Checkpoint", description: "Description", origin: Origin, wishes: Wishes
) -> Subject:
    """What llama.cpp's converter describes: the GGUF that it would write, without its weights."""
    from quantkit.build.projector import projector_bytes
    from quantkit.checkpoint.open import open_model

    description.rows.close()  # nobody asks for rows
    model = open_model(checkpoint)
    metadata = describe_checkpoint(checkpoint, model)
    source = _size_of_files(checkpoint)
    download = 0 if origin == "checkpoint" else source
    file = unquantized_file(model, metadata.base_name, model.keys)
    buildable = Buildable(model, metadata, source, download)
    return replace(
        _from_bare(file, checkpoint.name, origin),
        variants=plan_variants(buildable, wishes),
        buildable=buildable,
        unquantized=True,
        describer=description.version,
        projector=projector_bytes(checkpoint),
    )


def _size_of_files(checkpoint: "Checkpoint") -> int:
    """Bytes of all weight files, here or on the Hub."""
    if checkpoint.repo is not None:
        return sum(checkpoint.repo.sizes[file.name] for file in checkpoint.files)
    return sum(map(_size, checkpoint.files))


def _from_model(
    model: Decoder,
    metadata: ModelMetadata,
    origin: Origin,
    wishes: Wishes,
    title: str,
    source_bytes: int,
    vocabulary_bytes: int,
) -> Subject:
    download = 0 if origin == "checkpoint" else source_bytes
    buildable = Buildable(model, metadata, source_bytes, download, vocabulary_bytes)
    bare = _from_bare(bare_file(model, metadata.base_name), title, origin)
    variants = plan_variants(buildable, wishes)
    return replace(bare, variants=variants, buildable=buildable, model=model)


def _from_bare(file: PlannedFile, title: str, origin: Origin) -> Subject:
    """A GGUF that is planned, as far as its header tells."""
    header = header_of(file)
    at = Path(file.name)
    tensors = _tensors(header.tensors)
    return Subject(
        title=title,
        origin=origin,
        shape=shape_of_header(at, header.metadata, header.tensors),
        variants=(),
        n_parameters=tensors.n_elements,
        n_active=count_active(at, header.metadata, tensors),
        model=None,
        gguf=None,
        hollow=(Hollow(file.name, file.header, file.n_bytes),),
    )


def _from_source(
    found: Subject,
    files: Sequence[Path],
    headers: Sequence[Header],
    sizes: Sequence[int],
    wishes: Wishes,
    here: Path | None = None,
) -> Subject:
    """A GGUF as what can be built of it; ``here`` holds the first header of one on the Hub."""
    from quantkit.checkpoint.gguf_source import describe_gguf, join_shards

    checkpoint = join_shards(files, headers, sizes, here)
    model = describe_gguf(checkpoint)
    return plan_gguf(found, model, describe_checkpoint(checkpoint, model), wishes)


def plan_gguf(found: Subject, model: Model, metadata: ModelMetadata, wishes: Wishes) -> Subject:
    """An unquantized GGUF as everything that can be built of it.

    Args:
        found: the GGUF as the one variant that it is; it is also what llama.cpp is asked about.
        model: its tensors as targets.
        metadata: its keys, as they go into what is built.
        wishes: which quants to plan, and how.

    """
    source = found.variants[0].file_bytes
    download = source if found.origin == "hub" else 0
    buildable = Buildable(model, metadata, source, download)
    return replace(found, variants=plan_variants(buildable, wishes), buildable=buildable)


def _from_gguf(
    names: Sequence[str],
    files: Sequence[Path],
    headers: Sequence[Header],
    sizes: Sequence[int],
    origin: Origin,
) -> Subject:
    """The subject of a GGUF's files, of which the Hub's are here with their headers only."""
    rows = [tensor for header in headers for tensor in header.tensors]
    metadata = headers[0].metadata
    shape = shape_of_header(files[0], metadata, rows)
    tensors = _tensors(rows)
    quant = quant_of(headers)
    variant = Variant(
        name=quant.name if quant else "as built",
        tensors=tensors,
        sizes=tuple(tensor.n_bytes for tensor in rows),
        file_name=names[0],
        n_files=len(files),
        file_bytes=sum(sizes),
        file_is_exact=True,
        download_bytes=sum(sizes) if origin == "hub" else 0,
        source_bytes=0,
        needs_imatrix=False,
        path=str(files[0]) if origin == "gguf" else "",
    )
    return Subject(
        title=str(metadata.get("general.name", Path(names[0]).stem)),
        origin=origin,
        shape=shape,
        variants=(variant,),
        n_parameters=tensors.n_elements,
        n_active=count_active(files[0], metadata, tensors),
        model=None,
        gguf=None if origin == "hub" else files[0].absolute(),
        hollow=tuple(map(_hollow, names, files, headers, sizes)) if origin == "hub" else (),
        unquantized=is_unquantized(rows),
    )


def _tensors(rows: Sequence[HeaderTensor]) -> Tensors:
    return Tensors(tuple(row.name for row in rows), tuple(row.shape for row in rows))


def _hollow(name: str, file: Path, header: Header, n_bytes: int) -> Hollow:
    with open_file(file, error=GGUFError) as stream:
        return Hollow(name, stream.read(header.data_offset), n_bytes)


def _read_shards(path: Path) -> tuple[list[Path], list[Header], list[int]]:
    """The files of a GGUF, with their headers and sizes."""
    files = shard_names(path)
    for file in files:
        if not file.is_file():
            raise GGUFError(f"{file} is not there; give the path of a whole GGUF.")
    sizes = [_size(file) for file in files]
    return files, list(map(read_header, files, sizes)), sizes


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise GGUFError(f"{file} cannot be read: {error.strerror}.") from None
