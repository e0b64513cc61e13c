"""What a source is (a folder, raw Mistral weights, a GGUF, a name on the Hub), and its model."""

from pathlib import Path

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.describe import Wish, describe_by_converter, described_model
from quantkit.checkpoint.folder import is_foreign, list_folder, open_folder
from quantkit.checkpoint.gguf import is_gguf
from quantkit.checkpoint.gguf_source import describe_gguf, open_gguf, open_hub_gguf
from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.checkpoint.names import is_raw_release, parse_hub_name, weight_files
from quantkit.checkpoint.raw_mistral import open_raw_mistral
from quantkit.checkpoint.sources import check_sources
from quantkit.core.errors import CheckpointError
from quantkit.families import describe, is_known
from quantkit.families.model import Decoder, Model

_WISH = Wish()


def open_source(name: str, wish: Wish = _WISH) -> Path | Checkpoint:
    """The path of that name, or else what the Hub has under it, whose headers are read now.

    Args:
        name: a path, or a name on the Hub.
        wish: how llama.cpp's converter is asked, where it is.

    Raises:
        CheckpointError: the Hub has no such checkpoint, or cannot be reached.
        ConverterError: as `open_checkpoint` does.
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
    return _described(open_hub_checkpoint(hub.repo_id, hub.revision), wish)


def open_checkpoint(path: Path, wish: Wish = _WISH) -> Checkpoint:
    """Read the headers of a checkpoint's folder, or of a GGUF's files.

    Raw Mistral weights are shown as what they would be converted to (see ``raw_mistral``).
    A checkpoint that no family of ours describes is described by llama.cpp's converter.

    Raises:
        CheckpointError: it is missing, incomplete or quantized already, or contradicts itself.
        SafetensorsError, GGUFError: a file of it breaks its format's rules.
        ConverterError: the converter is needed and cannot be had, or does not describe it.

    """
    if is_gguf_file(path):
        return open_gguf(path)
    names = list_folder(path)
    if is_raw_release(names):
        return open_raw_mistral(path)
    return _described(open_folder(path, names), wish)


def open_once(source: Path | Checkpoint, wish: Wish) -> Path | Checkpoint:
    """The checkpoint in a folder, for those who need it several times; anything else as it is.

    Raises:
        CheckpointError, SafetensorsError, GGUFError, ConverterError: as `open_checkpoint` does.

    """
    if isinstance(source, Checkpoint) or is_gguf_file(source):
        return source
    checkpoint = open_checkpoint(source, wish)
    if checkpoint.description is None and (wish.tree is not None or wish.mtp is not None):
        raise CheckpointError(
            "--llama-cpp, --mtp and --no-mtp are for checkpoints that llama.cpp's converter "
            f"describes, and {source} is of a family that quantkit reads itself; leave them out."
        )
    return checkpoint


def _described(checkpoint: Checkpoint, wish: Wish) -> Checkpoint:
    """A checkpoint with what its tensors are in a GGUF, where only the converter can tell."""
    if not is_foreign(checkpoint):
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
    if checkpoint.description is not None:
        raise CheckpointError(
            f"{checkpoint.path} is {_kind(checkpoint)}, whose layers quantkit does not compute; "
            "GGUFs can be made of it."
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
