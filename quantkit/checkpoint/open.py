"""What a source is (a folder, raw Mistral weights, a GGUF, a name on the Hub), and its model."""

from pathlib import Path

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.describe import describe_by_converter, described_model
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.folder import is_foreign, list_folder, open_folder
from quantkit.checkpoint.gguf import is_gguf
from quantkit.checkpoint.gguf_source import describe_gguf, open_gguf, open_hub_gguf
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.names import is_raw_release, parse_hub_name, weight_files
from quantkit.checkpoint.raw_mistral import open_raw_mistral
from quantkit.checkpoint.sources import check_sources
from quantkit.core.errors import CheckpointError
from quantkit.families import describe, is_known
from quantkit.families.model import Decoder, Model

_WISH = ConverterOptions()


def open_source(name: str, wish: ConverterOptions = _WISH) -> Path | Checkpoint:
    """The path of that name, or else what the Hub has under it, opened as a folder is.

    Args:
        name: a path, or a name on the Hub.
        wish: how llama.cpp's converter is asked, where it is.

    Raises:
        CheckpointError, GGUFError, SafetensorsError: as `find_source` does.
        ConverterError: as `open_checkpoint` does.

    """
    source = find_source(name)
    return source if isinstance(source, Path) else described(source, wish)


def find_source(name: str) -> Path | Checkpoint:
    """The path of that name, or else what the Hub has under it, whose headers are read now.

    It is as it is stored: what no family of ours describes is not described yet.

    Raises:
        CheckpointError: the Hub has no such checkpoint, or cannot be reached.
        GGUFError, SafetensorsError: a file of it breaks its format's rules.

    """
    hub = None if Path(name).exists() else parse_hub_name(name)
    if hub is not None and name.lower().endswith(".gguf") and Path(name).parent.is_dir():
        raise CheckpointError(f"{name} does not exist, though its folder does; check its spelling.")
    if hub is None:
        if "://" in name:
            raise CheckpointError(
                f"{name} is not the address of a model on huggingface.co; give a folder, a GGUF, "
                "or NAMESPACE/NAME."
            )
        return Path(name)
    if hub.file is not None:
        return open_hub_gguf(hub.repo_id, hub.file, hub.revision)
    return open_hub_checkpoint(hub.repo_id, hub.revision)


def open_checkpoint(path: Path, wish: ConverterOptions = _WISH) -> Checkpoint:
    """Read the headers of a checkpoint's folder, or of a GGUF's files.

    Raw Mistral weights are shown as what they would be converted to (see ``raw_mistral``).
    A checkpoint that no family of ours describes is described by llama.cpp's converter.

    Raises:
        CheckpointError: it is missing, incomplete or quantized already, or contradicts itself.
        SafetensorsError, GGUFError: a file of it breaks its format's rules.
        ConverterError: the converter is needed and cannot be had, or does not describe it.

    """
    return described(open_stored(path), wish)


def open_stored(path: Path) -> Checkpoint:
    """The same as it is stored: what no family of ours describes is not described.

    Raises:
        CheckpointError, SafetensorsError, GGUFError: as `open_checkpoint` does.

    """
    if is_gguf_file(path):
        return open_gguf(path)
    names = list_folder(path)
    return open_raw_mistral(path) if is_raw_release(names) else open_folder(path, names)


def open_stored_by_name(name: str) -> Checkpoint:
    """What has that name, here or on the Hub, as it is stored, with a way to its rows.

    Raises:
        CheckpointError, SafetensorsError, GGUFError: as `find_source` and `open_stored` do.

    """
    source = find_source(name)
    return open_stored(source) if isinstance(source, Path) else with_rows(source)


def open_once(source: Path | Checkpoint, wish: ConverterOptions) -> Path | Checkpoint:
    """The checkpoint in a folder or on the Hub, for those who need it several times; or a GGUF.

    Args:
        source: as `find_source` gives it.
        wish: how llama.cpp's converter is asked, where it is.

    Raises:
        CheckpointError, SafetensorsError, GGUFError, ConverterError: as `open_checkpoint` does.

    """
    if isinstance(source, Path) and not is_gguf_file(source):
        source = open_checkpoint(source, wish)
    elif isinstance(source, Checkpoint):
        source = described(source, wish)
    if not isinstance(source, Checkpoint) or source.description is None:
        refuse_idle(wish, str(source if isinstance(source, Path) else source.repo or source.path))
    return source


def refuse_idle(wish: ConverterOptions, name: str) -> None:
    """Refuse what only the converter does, for something that it does not describe.

    Raises:
        CheckpointError: such a thing is asked for.

    """
    if wish.is_for_converter:
        raise CheckpointError(
            "--llama-cpp, --mtp and --no-mtp are for checkpoints that llama.cpp's converter "
            f"describes, but quantkit reads {name} itself; leave them out."
        )


def described(checkpoint: Checkpoint, wish: ConverterOptions) -> Checkpoint:
    """A checkpoint with what its tensors are in a GGUF, where only the converter can tell.

    Raises:
        ConverterError: the converter is needed and cannot be had, or does not describe it.
        CheckpointError: it is damaged.

    """
    if checkpoint.description is not None or not is_foreign(checkpoint):
        return checkpoint
    return describe_by_converter(checkpoint, wish)


def open_model(checkpoint: Checkpoint) -> Model:
    """The model that a checkpoint holds, of which it has all tensors and no others.

    Raises:
        CheckpointError, UnknownArchitectureError: its tensors are not what its config promises, or
            nobody knows such a model.
        GGUFError: the same for a GGUF.

    """
    if checkpoint.header is not None:
        return describe_gguf(checkpoint)
    if checkpoint.description is not None:
        return described_model(checkpoint)
    return open_decoder(checkpoint)


def open_decoder(checkpoint: Checkpoint, fix: str = "GGUFs can be made of it") -> Decoder:
    """The model of a checkpoint whose layers quantkit itself can compute.

    Args:
        checkpoint: which need not be described.
        fix: what to do with one whose layers it cannot compute; it ends the sentence.

    Raises:
        CheckpointError, UnknownArchitectureError: as `open_model` does, or it is a GGUF.

    """
    if checkpoint.header is not None:
        raise CheckpointError(
            f"{checkpoint.path} is a GGUF, of which only other GGUFs can be made; give the "
            "checkpoint that it was converted from."
        )
    if is_foreign(checkpoint):
        raise CheckpointError(
            f"{checkpoint.repo or checkpoint.path} is {_kind(checkpoint)}, which quantkit so far "
            f"reads only through llama.cpp's converter; {fix}."
        )
    model = describe(checkpoint.config, checkpoint.tensors)
    check_sources(model, checkpoint.tensors)
    return model


def _kind(checkpoint: Checkpoint) -> str:
    """What people call a checkpoint that the converter describes."""
    if is_known(checkpoint.config):
        return "stored in quantized form"
    return f"of the architecture {checkpoint.config['architectures'][0]}"


def require_checkpoint(source: Path | Checkpoint, fix: str) -> None:
    """Refuse a GGUF for what needs a checkpoint; ``fix`` ends the sentence.

    Raises:
        CheckpointError: it is one.

    """
    if is_gguf_source(source):
        path = source if isinstance(source, Path) else source.path
        raise CheckpointError(f"{path} is a GGUF, and this needs a checkpoint; {fix}.")


def require_layers(source: Path | Checkpoint, fix: str) -> tuple[Checkpoint, Decoder]:
    """A checkpoint whose layers quantkit itself can compute; llama.cpp's converter is not asked.

    Args:
        source: a folder, or what is opened of one.
        fix: what to do where it cannot; it ends the sentence.

    Raises:
        CheckpointError, UnknownArchitectureError: as `open_decoder` does.
        SafetensorsError: a file of it breaks its format's rules.

    """
    checkpoint = source if isinstance(source, Checkpoint) else open_stored(source)
    return checkpoint, open_decoder(checkpoint, fix)


def is_gguf_source(source: Path | Checkpoint) -> bool:
    """Whether what `find_source` gives is a GGUF."""
    return is_gguf_file(source) if isinstance(source, Path) else source.header is not None


def is_gguf_file(path: Path) -> bool:
    """Whether a path is that of a GGUF, as its name or its beginning tells."""
    return not path.is_dir() and (path.suffix.lower() == ".gguf" or is_gguf(path))


def holds_weights(path: Path) -> bool:
    """Whether a folder has files with weights that a checkpoint can be read from, or their index.

    Raises:
        CheckpointError: the folder cannot be read.

    """
    names = list_folder(path)
    return is_raw_release(names) or bool(weight_files(names))
