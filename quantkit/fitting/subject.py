"""What MODEL is: a folder, a GGUF, a repo on the Hub or a bundled name, and its quants' tensors.

A folder may be a checkpoint, its config.json alone, what a build left, or one of its artifacts.
What only some of these need is imported where one is opened: a bundled model needs least.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.names import HubName, folder_name, index_name, parse_hub_name
from quantkit.core.errors import CheckpointError, GGUFError, UnknownArchitectureError
from quantkit.core.profiles import load_profile, profile_names
from quantkit.families import describe, is_known
from quantkit.families.model import Decoder
from quantkit.fitting.bare import bare_file, header_of, shape_of, unquantized_file
from quantkit.fitting.ggufs import (
    choose,
    files_here,
    files_on_hub,
    open_artifact,
    size_of,
    subject_of,
    tensors_of,
)
from quantkit.fitting.model import Origin, SizedModel, Stored
from quantkit.fitting.shape import count_active, shape_of_header
from quantkit.fitting.variants import Buildable, PlanOptions, Variant, plan_variants, variant_of
from quantkit.formats.gguf.layout import PlannedFile
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries, describe_checkpoint
from quantkit.verification.hollow import HeaderOnly

if TYPE_CHECKING:
    from quantkit.checkpoint.checkpoint import Checkpoint, Description

__all__ = [
    "Buildable",
    "PlanOptions",
    "SizedModel",
    "Stored",
    "Variant",
    "bundled_models",
    "open_artifact",
    "open_subject",
    "shape_of",
    "variant_of",
]

# A vocabulary in a GGUF: per token its length (8 bytes), score (4) and type (4), and its text,
# 6.4 bytes on average in Mistral's first tokenizer (mistral-common's tokenizer.model.v1: 717 KB).
_VOCABULARY_BYTES_PER_TOKEN = 22.4
_BF16 = 2  # bytes per weight of the bundled models' checkpoints
_USUAL = PlanOptions()


def bundled_models() -> tuple[str, ...]:
    """The names of the models that need no download and no network."""
    return profile_names("models")


def open_subject(name: str, wishes: PlanOptions = _USUAL) -> SizedModel:
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


def _open(name: str, wishes: PlanOptions) -> SizedModel:
    path = Path(name)
    if path.is_dir():
        return _from_folder(path, wishes)
    if path.name == "config.json" and path.is_file():
        return _from_config(path, wishes)
    if path.exists() or (path.suffix.lower() == ".gguf" and "/" not in name):
        return subject_of(files_here(path), wishes)
    if name.lower() in bundled_models():
        return _from_profile(name.lower(), wishes)
    hub = parse_hub_name(name)
    if hub is None:
        import difflib

        known = bundled_models()
        if near := difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75):
            raise CheckpointError(f"There is no model {name!r}; did you mean {near[0]}?")
        raise CheckpointError(
            f"There is no model {name!r}; give a folder, a GGUF file, a Hub id such as "
            f"mistralai/Mixtral-8x7B-v0.1, or one of {', '.join(known)}."
        )
    return _from_repo(hub, wishes) if hub.file is None else subject_of(files_on_hub(hub), wishes)


def _from_repo(hub: HubName, wishes: PlanOptions) -> SizedModel:
    """A checkpoint on the Hub, of which the headers and the small files are fetched."""
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.open import open_source

    at = f"@{hub.revision}" if hub.revision else ""
    checkpoint = open_source(f"{hub.repo_id}{at}", wishes.converter)
    assert isinstance(checkpoint, Checkpoint)  # noqa: S101 - no path has that name
    subject = _from_checkpoint(checkpoint, "hub", wishes)
    n_fetched = checkpoint.repo.n_fetched if checkpoint.repo is not None else 0
    return replace(subject, title=hub.repo_id, n_fetched=n_fetched)


def _from_profile(name: str, wishes: PlanOptions) -> SizedModel:
    profile = load_profile(f"models/{name}.toml")
    model = describe(profile["config"])
    source = profile.get("source", {}).get("file_bytes")
    return _from_shapes(model, profile["title"], "bundled", wishes, source)


def _from_config(file: Path, wishes: PlanOptions) -> SizedModel:
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
    model: Decoder, title: str, origin: Origin, wishes: PlanOptions, source_bytes: int | None = None
) -> SizedModel:
    """A model without its tokenizer, whose share of a header is estimated."""
    metadata = ModelMetadata(title, bare_entries(model))
    vocabulary = int(model.hparams.vocab_size * _VOCABULARY_BYTES_PER_TOKEN)
    source = model.n_parameters * _BF16 if source_bytes is None else source_bytes
    return _from_model(model, metadata, origin, wishes, title, source, vocabulary)


def _from_folder(path: Path, wishes: PlanOptions) -> SizedModel:
    from quantkit.checkpoint.open import holds_weights, open_checkpoint
    from quantkit.formats.dequantized import is_own_artifact
    from quantkit.verification.subjects import holds_artifacts

    if holds_weights(path):
        if is_own_artifact(path):
            return _from_artifact(path)
        return _from_checkpoint(open_checkpoint(path, wishes.converter), "checkpoint", wishes)
    if (path / "config.json").is_file():
        return _from_config(path / "config.json", wishes)
    if holds_artifacts(path):
        return _from_artifacts(path, wishes)
    return _from_checkpoint(open_checkpoint(path), "checkpoint", wishes)  # it says what is missing


def _from_artifacts(folder: Path, wishes: PlanOptions) -> SizedModel:
    """What a build left: GGUF files are variants of one model, folders are for transformers."""
    from quantkit.verification.subjects import artifacts_in, projectors_in

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
    return choose(whole, wishes)


def _weigh_projector(file: Path) -> int:
    return sum(tensor.n_bytes for tensor in read_header(file).tensors)


def _from_artifact(folder: Path) -> SizedModel:
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
    bare = _from_model(model, metadata, "artifacts", PlanOptions(()), title, 0, 0)
    return replace(bare, buildable=None, stored=stored)


def _from_dequantized(folder: Path) -> SizedModel:
    """A folder for transformers as llama.cpp's converter describes what it dequantizes to."""
    from quantkit.formats.dequantized import as_checkpoint

    view = as_checkpoint(folder)
    assert view.description is not None  # noqa: S101 - it was described
    subject = _from_description(view, view.description, "artifacts", PlanOptions(()))
    return replace(subject, unquantized=False, buildable=None)


def _from_checkpoint(checkpoint: "Checkpoint", origin: Origin, wishes: PlanOptions) -> SizedModel:
    from quantkit.checkpoint.open import open_decoder

    if checkpoint.description is not None:
        return _from_description(checkpoint, checkpoint.description, origin, wishes)
    model = open_decoder(checkpoint)
    metadata = describe_checkpoint(checkpoint, model)
    source = sum(tensor.n_bytes for tensor in checkpoint.tensors.values())
    title = checkpoint.name
    return _from_model(model, metadata, origin, wishes, title, source, 0)


def _from_description(
    checkpoint: "Checkpoint", description: "Description", origin: Origin, wishes: PlanOptions
) -> SizedModel:
    """What llama.cpp's converter describes: the GGUF that it would write, without its weights."""
    from quantkit.building.projector import projector_bytes
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
    return sum(map(size_of, checkpoint.files))


def _from_model(
    model: Decoder,
    metadata: ModelMetadata,
    origin: Origin,
    wishes: PlanOptions,
    title: str,
    source_bytes: int,
    vocabulary_bytes: int,
) -> SizedModel:
    download = 0 if origin == "checkpoint" else source_bytes
    buildable = Buildable(model, metadata, source_bytes, download, vocabulary_bytes)
    bare = _from_bare(bare_file(model, metadata.base_name), title, origin)
    variants = plan_variants(buildable, wishes)
    return replace(bare, variants=variants, buildable=buildable, model=model)


def _from_bare(file: PlannedFile, title: str, origin: Origin) -> SizedModel:
    """A GGUF that is planned, as far as its header tells."""
    header = header_of(file)
    at = Path(file.name)
    tensors = tensors_of(header.tensors)
    return SizedModel(
        title=title,
        origin=origin,
        shape=shape_of_header(at, header.metadata, header.tensors),
        variants=(),
        n_parameters=tensors.n_elements,
        n_active=count_active(at, header.metadata, tensors),
        model=None,
        gguf=None,
        hollow=(HeaderOnly(file.name, file.header, file.n_bytes),),
    )
