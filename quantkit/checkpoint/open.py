"""What a source is (a folder, raw Mistral weights, a GGUF, a name on the Hub), and its model."""

from pathlib import Path

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.describe import described_model
from quantkit.checkpoint.folder import list_folder, open_folder
from quantkit.checkpoint.gguf import is_gguf
from quantkit.checkpoint.gguf_source import describe_gguf, open_gguf, open_hub_gguf
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.checkpoint.names import is_raw_release, parse_hub_name, weight_files
from quantkit.checkpoint.raw_mistral import open_raw_mistral
from quantkit.checkpoint.sources import check_sources
from quantkit.core.errors import CheckpointError
from quantkit.families import describe
from quantkit.families.model import Decoder, Model


def open_source(name: str) -> Path | Checkpoint:
    """The path of that name, or else what the Hub has under it, whose headers are read now.

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
                f"{name} is no address of a model on huggingface.co; give a folder, a GGUF, or "
                "NAMESPACE/NAME."
            )
        return Path(name)
    if hub.file is not None:
        return open_hub_gguf(hub.repo_id, hub.file, hub.revision)
    return open_hub_checkpoint(hub.repo_id, hub.revision)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint's folder, or of a GGUF's files.

    Raw Mistral weights are shown as what they would be converted to (see ``raw_mistral``).

    Raises:
        CheckpointError: it is missing, incomplete or quantized already, or contradicts itself.
        SafetensorsError, GGUFError: a file of it breaks its format's rules.

    """
    if is_gguf_file(path):
        return open_gguf(path)
    names = list_folder(path)
    return open_raw_mistral(path) if is_raw_release(names) else open_folder(path, names)


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


def open_decoder(checkpoint: Checkpoint) -> Decoder:
    """The model of a checkpoint whose layers quantkit itself can compute.

    Raises:
        CheckpointError, UnknownArchitectureError: as `open_model` does, or it is a GGUF.

    """
    if checkpoint.header is not None:
        raise CheckpointError(
            f"{checkpoint.path} is a GGUF, of which only other GGUFs can be made; give the "
            "checkpoint that it was converted from."
        )
    model = describe(checkpoint.config, checkpoint.tensors)
    check_sources(model, checkpoint.tensors)
    return model


def require_checkpoint(source: Path | Checkpoint, fix: str) -> None:
    """Refuse a GGUF for what needs a checkpoint; ``fix`` ends the sentence.

    Raises:
        CheckpointError: it is one.

    """
    path = source if isinstance(source, Path) else source.path
    is_gguf = source.header is not None if isinstance(source, Checkpoint) else is_gguf_file(path)
    if is_gguf:
        raise CheckpointError(f"{path} is a GGUF, and quantkit computes no layers of one; {fix}.")


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
