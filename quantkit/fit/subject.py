"""What MODEL is: a folder, a GGUF, a repo on the Hub or a bundled name, and its quants' tensors.

A folder may be a checkpoint, its config.json alone, what a build left, or one of its artifacts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from quantkit.build.projector import projector_bytes
from quantkit.checkpoint.checkpoint import Checkpoint, Description
from quantkit.checkpoint.converter.wish import Wish
from quantkit.checkpoint.folder import is_artifact, list_folder, open_quantized, read_json
from quantkit.checkpoint.gguf import Header, parse_header, read_header
from quantkit.checkpoint.gguf_source import describe_gguf, join_shards
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.names import folder_name, index_name, parse_hub_name, shard_names
from quantkit.checkpoint.open import (
    holds_weights,
    open_checkpoint,
    open_decoder,
    open_model,
    open_source,
    refuse_idle,
)
from quantkit.checkpoint.shards import read_weight_map
from quantkit.core.errors import (
    CheckpointError,
    GGUFError,
    PlanError,
    UnknownArchitectureError,
)
from quantkit.core.files import open_file
from quantkit.core.profiles import load_profile, profiles_folder
from quantkit.families import describe, is_known
from quantkit.families.model import Decoder, KeyValue, Model
from quantkit.fit.shape import (
    Piece,
    Shape,
    count_active,
    is_unquantized,
    piece,
    shape_of_header,
)
from quantkit.formats.dequantized import as_checkpoint
from quantkit.formats.gguf.layout import GGUFLayout, PlannedFile, lay_out
from quantkit.formats.gguf.metadata import (
    ModelMetadata,
    bare_entries,
    describe_checkpoint,
)
from quantkit.plan.llama_quantize import needs_imatrix
from quantkit.plan.plan import Plan, make_plan, outline_plan
from quantkit.plan.quants import Quant, all_quants
from quantkit.plan.recipe import recipe_of
from quantkit.plan.recognize import quant_of
from quantkit.verify.hollow import Hollow
from quantkit.verify.subjects import artifacts_in, holds_artifacts, projectors_in

Origin = Literal["bundled", "config", "checkpoint", "hub", "gguf", "artifacts"]

# A vocabulary in a GGUF: per token its length (8 bytes), score (4) and type (4), and its text,
# 6.4 bytes on average in Mistral's first tokenizer (mistral-common's tokenizer.model.v1: 717 KB).
_VOCABULARY_BYTES_PER_TOKEN = 22.4
_BF16 = 2  # bytes per weight of the bundled models' checkpoints

_AS_USUAL = Wish()


@dataclass(frozen=True)  # without slots, which cached properties cannot use
class Variant:
    """One quant of a model.

    ``file_bytes`` counts all files with their headers. It is exact where the tokenizer is known;
    for a bundled model the vocabulary's share of the header is estimated (``file_is_exact``).
    ``download_bytes`` is the checkpoint that a build reads and is not here yet. One that
    ``requantizes`` encodes anew what is stored in blocks, which a build does where it is allowed.
    ``path`` is where its first file is, as it was named; empty where it is not here.
    """

    name: str
    pieces: tuple[Piece, ...]
    file_name: str
    n_files: int
    file_bytes: int
    file_is_exact: bool
    download_bytes: int
    source_bytes: int
    needs_imatrix: bool
    good_for: str = ""
    format: str = "gguf"
    requantizes: bool = False
    path: str = ""

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding and header."""
        return sum(piece.n_bytes for piece in self.pieces)

    @cached_property
    def bits_per_weight(self) -> float:
        """Mean bits per weight over all tensors."""
        return 8 * self.tensor_bytes / sum(piece.n_elements for piece in self.pieces)


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
class Buildable:
    """What GGUFs are planned from: a model, its keys, and what building one takes.

    ``vocabulary_bytes`` are the estimated share of the vocabulary in a header, 0 where it is known
    and among the keys. ``source_bytes`` and ``download_bytes`` are those of `Variant`.
    """

    model: Model
    metadata: ModelMetadata
    source_bytes: int
    download_bytes: int
    vocabulary_bytes: int = 0


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


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the variants would be built: which, in files of what size, with which imatrix.

    ``quants`` None stands for all of them, ``shard_size`` None for single files; it counts tensor
    bytes, as in ``formats.gguf.layout.lay_out``. ``converter`` is how llama.cpp's converter is
    asked, where it is.
    """

    quants: Sequence[Quant] | None = None
    shard_size: int | None = None
    imatrix: Imatrix | None = None
    converter: Wish = _AS_USUAL


def open_subject(name: str, wishes: Wishes = Wishes()) -> Subject:
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
    if subject.describer is None:
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
            return _from_source(found, join_shards(files, headers, sizes), wishes)
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
        return _from_source(subject, join_shards(files, headers, sizes, paths[0]), wishes)
    return _chosen(subject, wishes)


def _from_profile(name: str, wishes: Wishes) -> Subject:
    profile = load_profile(f"models/{name}.toml")
    model = describe(profile["config"])
    source = profile.get("source", {}).get("file_bytes")
    return _from_shapes(model, profile["title"], "bundled", wishes, source)


def _from_config(file: Path, wishes: Wishes) -> Subject:
    """A model whose config.json alone is here, and perhaps its weights' index."""
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
    vocabulary = int(shape_of(model).n_vocab * _VOCABULARY_BYTES_PER_TOKEN)
    source = model.n_parameters * _BF16 if source_bytes is None else source_bytes
    return _from_model(model, metadata, origin, wishes, title, source, vocabulary)


def _from_folder(path: Path, wishes: Wishes) -> Subject:
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
    view = as_checkpoint(folder, _AS_USUAL)
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


def _from_checkpoint(checkpoint: Checkpoint, origin: Origin, wishes: Wishes) -> Subject:
    if checkpoint.description is not None:
        return _from_description(checkpoint, checkpoint.description, origin, wishes)
    model = open_decoder(checkpoint)
    metadata = describe_checkpoint(checkpoint, model)
    source = sum(tensor.n_bytes for tensor in checkpoint.tensors.values())
    title = checkpoint.name
    return _from_model(model, metadata, origin, wishes, title, source, 0)


def _from_description(
    checkpoint: Checkpoint, description: Description, origin: Origin, wishes: Wishes
) -> Subject:
    """What llama.cpp's converter describes: the GGUF that it would write, without its weights."""
    description.rows.close()  # nobody asks for rows
    model = open_model(checkpoint)
    metadata = describe_checkpoint(checkpoint, model)
    source = _size_of_files(checkpoint)
    download = 0 if origin == "checkpoint" else source
    file = _unquantized_file(model, metadata.base_name, model.keys)
    buildable = Buildable(model, metadata, source, download)
    return replace(
        _from_bare(file, checkpoint.name, origin),
        variants=_planned(buildable, wishes),
        buildable=buildable,
        unquantized=True,
        describer=description.version,
        projector=projector_bytes(checkpoint),
    )


def _size_of_files(checkpoint: Checkpoint) -> int:
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
    bare = _from_bare(_bare_file(model, metadata.base_name), title, origin)
    variants = _planned(buildable, wishes)
    return replace(bare, variants=variants, buildable=buildable, model=model)


def _from_bare(file: PlannedFile, title: str, origin: Origin) -> Subject:
    """A GGUF that is planned, as far as its header tells."""
    header = _header_of(file)
    at = Path(file.name)
    pieces = [piece(t.name, t.shape, t.n_bytes) for t in header.tensors]
    return Subject(
        title=title,
        origin=origin,
        shape=shape_of_header(at, header.metadata, header.tensors),
        variants=(),
        n_parameters=sum(part.n_elements for part in pieces),
        n_active=count_active(at, header.metadata, pieces),
        model=None,
        gguf=None,
        hollow=(Hollow(file.name, file.header, file.n_bytes),),
    )


def _from_source(found: Subject, checkpoint: Checkpoint, wishes: Wishes) -> Subject:
    """A GGUF as what can be built of it."""
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
    return replace(found, variants=_planned(buildable, wishes), buildable=buildable)


def _planned(source: Buildable, wishes: Wishes) -> tuple[Variant, ...]:
    variants = []
    for quant in all_quants().values() if wishes.quants is None else wishes.quants:
        try:
            plan, needed = _outline(source.model, quant, wishes.imatrix)
        except PlanError:
            if wishes.quants is None:
                continue  # llama-quantize cannot make this one of this model
            raise
        variants.append(variant_of(plan, source, wishes, needed=needed))
    return tuple(sorted(variants, key=lambda variant: -variant.tensor_bytes))


def variant_of(plan: Plan, source: Buildable, wishes: Wishes, *, needed: bool) -> Variant:
    """The variant that a plan makes.

    Args:
        plan: of what can be built.
        source: what it is planned from.
        wishes: how it would be built.
        needed: whether it cannot be without an importance matrix, and ``wishes`` has none.

    """
    layout = lay_out(plan, source.metadata, wishes.imatrix, wishes.shard_size)
    guessed = source.vocabulary_bytes > 0 or (needed and wishes.imatrix is None)
    return Variant(
        name=plan.quant.name,
        pieces=tuple(_pieces(plan)),
        file_name=_first_file(layout),
        n_files=len(layout.files),
        file_bytes=layout.n_bytes + source.vocabulary_bytes,
        file_is_exact=not guessed,
        download_bytes=source.download_bytes,
        source_bytes=source.source_bytes,
        needs_imatrix=needed,
        good_for=plan.quant.good_for,
        requantizes=plan.requantized is not None,
    )


def _outline(model: Model, quant: Quant, imatrix: Imatrix | None) -> tuple[Plan, bool]:
    """The plan, and whether it needs an importance matrix, which it then is planned with."""
    if imatrix is not None:
        return make_plan(model, quant, imatrix), False
    plan = outline_plan(model, quant, has_imatrix=False)
    recipe = recipe_of(quant)
    needed = any(needs_imatrix(t.target, t.encoding, recipe) for t in plan.tensors)
    return (outline_plan(model, quant, has_imatrix=True) if needed else plan), needed


def _first_file(layout: GGUFLayout) -> str:
    first = layout.files[0].name
    return first if layout.folder is None else f"{layout.folder}/{first}"


def _pieces(plan: Plan) -> Iterable[Piece]:
    for tensor in plan.tensors:
        yield piece(tensor.target.name, tensor.target.shape, tensor.n_bytes)


def _bare_file(model: Model, name: str) -> PlannedFile:
    """A GGUF of a model without its vocabulary, as llama.cpp is asked about it."""
    return _unquantized_file(model, name, bare_entries(model))


def _unquantized_file(model: Model, name: str, entries: tuple[KeyValue, ...]) -> PlannedFile:
    """A GGUF of a model with such keys."""
    # Any encoding will do: llama.cpp's buffers hold activations, whose types do not depend on it.
    plan = outline_plan(model, all_quants()["bf16"], has_imatrix=False)
    (file,) = lay_out(plan, ModelMetadata(name, entries)).files
    return file


def shape_of(model: Model) -> Shape:
    """The shape of a model that its config.json describes."""
    header = _header_of(_bare_file(model, model.family))
    return shape_of_header(Path(model.family), header.metadata, header.tensors)


def _header_of(file: PlannedFile) -> Header:
    header = parse_header(file.header, file.n_bytes)
    assert header is not None  # noqa: S101 - it is all there
    return header


# --- GGUF ------------------------------------------------------------------------------------


def _from_gguf(
    names: Sequence[str],
    files: Sequence[Path],
    headers: Sequence[Header],
    sizes: Sequence[int],
    origin: Origin,
) -> Subject:
    """The subject of a GGUF's files, of which the Hub's are here with their headers only."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    metadata = headers[0].metadata
    shape = shape_of_header(files[0], metadata, tensors)
    pieces = tuple(piece(tensor.name, tensor.shape, tensor.n_bytes) for tensor in tensors)
    quant = quant_of(headers)
    variant = Variant(
        name=quant.name if quant else "as built",
        pieces=pieces,
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
        n_parameters=sum(one.n_elements for one in pieces),
        n_active=count_active(files[0], metadata, pieces),
        model=None,
        gguf=None if origin == "hub" else files[0].absolute(),
        hollow=tuple(map(_hollow, names, files, headers, sizes)) if origin == "hub" else (),
        unquantized=is_unquantized(tensors),
    )


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
