"""A checkpoint folder as the Hugging Face Hub serves it: config.json and safetensors files."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeAlias

from quantkit.checkpoint.remote import RemoteRepo
from quantkit.checkpoint.safetensors import is_unneeded_buffer, quoted, read_header
from quantkit.core.errors import CheckpointError
from quantkit.core.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
INDEX = "model.safetensors.index.json"

# What the common quantizers leave beside or instead of a weight.
_QUANTIZED = (
    ".qweight",  # GPTQ, AWQ
    ".weight_packed",  # compressed-tensors
    ".weight_scale",  # compressed-tensors, ModelOpt
    ".weight_scale_inv",  # FP8 in blocks
    ".absmax",  # bitsandbytes, 4 bit
    ".SCB",  # bitsandbytes, 8 bit
)

_LISTED = 3

# The tensors of weight files, file by file, in the order asked for.
HeaderReader = Callable[[tuple[Path, ...]], Iterable[dict[str, SourceTensor]]]
# (name, first row, count) -> little-endian bytes, 1-D
RowReader: TypeAlias = Callable[[str, int, int], "NDArray[np.uint8]"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A source model, known from config.json and the headers of its weight files.

    ``tensors`` holds every tensor of every file, by name; ``files`` the weight files in the
    order of their names, which is the order they are read in. A checkpoint on the Hub has its
    small files in ``path`` and only headers of its weights: ``files`` are then names that nothing
    need lie under, and ``repo`` says where the weights are. Where tensors do not lie in their files
    as they are described, ``read_rows`` gives their rows, and offsets only say in which order to
    read; it is called from one thread at a time.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]
    files: tuple[Path, ...]
    repo: RemoteRepo | None = None
    read_rows: RowReader | None = None

    @property
    def name(self) -> str:
        """What people call it: the last part of the repository's name, or the folder's."""
        return self.repo.repo_id.rpartition("/")[2] if self.repo else self.path.resolve().name


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the headers of a checkpoint folder and check that they agree with each other.

    The weights are the files that ``model.safetensors.index.json`` names or, without an index,
    every ``model*.safetensors``: the choice of llama.cpp's converter. Raw Mistral weights are
    shown as what they would be converted to (see ``raw_mistral``).

    Raises:
        CheckpointError: the folder is missing or incomplete, its index and its files disagree,
            or it is quantized already.
        SafetensorsError: a weight file breaks the format's rules.

    """
    from quantkit.checkpoint import raw_mistral

    names = _list_folder(path)
    if raw_mistral.is_raw_mistral(names):
        return raw_mistral.open_raw_mistral(path)
    if "config.json" not in names:
        raise CheckpointError(
            f"{path} has no config.json; give the folder of a Hugging Face checkpoint, downloaded "
            "with all its files."
        )
    return read_checkpoint(path, names, lambda files: map(read_header, files))


def is_quantized(path: Path) -> bool:
    """Whether a folder's config.json says that its weights are quantized.

    Raises:
        CheckpointError: the folder or its config.json cannot be read.

    """
    return "config.json" in _list_folder(path) and bool(
        read_json(path / "config.json").get("quantization_config")
    )


def open_quantized(path: Path) -> Checkpoint:
    """Read the headers of a quantized folder: its stored tensors, of whatever dtype.

    Raises:
        CheckpointError: the folder is missing, incomplete or not quantized, or its index and its
            files disagree.
        SafetensorsError: a weight file breaks the format's rules.

    """
    names = _list_folder(path)
    if "config.json" not in names:
        raise CheckpointError(f"{path} has no config.json; give the folder of an artifact.")
    config = read_json(path / "config.json")
    if not isinstance(config.get("quantization_config"), dict):
        raise CheckpointError(
            f"{path} is not quantized: its config.json has no quantization_config; give the folder "
            "of a quantized artifact."
        )

    def read_headers(files: tuple[Path, ...]) -> Iterable[dict[str, SourceTensor]]:
        return (read_header(file, any_dtype=True) for file in files)

    return _read_tensors(path, config, names, read_headers)


def read_checkpoint(path: Path, names: list[str], read_headers: HeaderReader) -> Checkpoint:
    """Check config.json, the index and the headers of a checkpoint against each other.

    Args:
        path: the folder with config.json and, where there is one, the index.
        names: the checkpoint's files, sorted; weight files among them need not be in ``path``.
        read_headers: gives the tensors of each weight file.

    Raises:
        CheckpointError, SafetensorsError: as `open_checkpoint` does.

    """
    config = read_json(path / "config.json")
    _refuse_quantized_config(path, config)
    if INDEX in names:
        _refuse_quantized_tensors(path, _read_weight_map(path / INDEX))
    checkpoint = _read_tensors(path, config, names, read_headers)
    _refuse_quantized_tensors(path, checkpoint.tensors)
    return checkpoint


def _read_tensors(
    path: Path, config: dict[str, Any], names: list[str], read_headers: HeaderReader
) -> Checkpoint:
    if INDEX in names:
        weight_map = _read_weight_map(path / INDEX)
        files = _find_shards(path, names, weight_map)
        tensors = _merge(files, read_headers)
        _check_index(path / INDEX, weight_map, tensors)
    else:
        files = _find_weights(path, names)
        tensors = _merge(files, read_headers)
    return Checkpoint(path, config, tensors, files)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    NaN and Infinity are taken, because transformers writes them.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not a JSON object.

    """
    try:
        # Reading a pipe would wait for its writer, so nothing but a plain file is opened.
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; download it again.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; download it again.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply; download it again.") from None
    except ValueError as error:  # of UTF-8, of JSON, or of an integer with thousands of digits
        raise CheckpointError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again.")
    return value


def _list_folder(path: Path) -> list[str]:
    """The names in a folder, sorted."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; give the folder of a downloaded checkpoint."
        ) from None
    except NotADirectoryError:
        if path.suffix.lower() == ".gguf":
            raise CheckpointError(
                f"{path} is a GGUF file, and build does not quantize an already built GGUF; give "
                "the folder of the checkpoint that it was made from."
            ) from None
        raise CheckpointError(
            f"{path} is a file; give the folder that holds the checkpoint's config.json."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _find_weights(path: Path, names: list[str]) -> tuple[Path, ...]:
    """The weight files of a folder without an index, in the order of ``names``."""
    files = [n for n in names if n.startswith("model") and n.endswith(".safetensors")]
    if files:
        return tuple(path / name for name in files)
    pickles = [
        n
        for n in names
        if n.endswith((".pt", ".pth")) or (n.startswith("pytorch_model") and n.endswith(".bin"))
    ]
    if pickles:
        raise CheckpointError(
            f"{path} holds its weights as pickles ({_some(pickles)}), which quantkit does not read "
            "because they can run code; if you trust them, load them with transformers and call "
            "save_pretrained, which writes safetensors."
        )
    raise CheckpointError(
        f"{path} has no model*.safetensors; download the checkpoint again, with its weights."
    )


def _read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name, as an index gives them; every file lies beside the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again.")
    for tensor, file in weight_map.items():
        if not _is_plain_name(file):
            raise CheckpointError(
                f"{index} puts tensor {quoted(tensor)} in {quoted(file)}, which is not the name of "
                "a file in its folder; don't trust this checkpoint, download it again from its "
                "origin."
            )
    return weight_map


def _is_plain_name(name: object) -> bool:
    """Whether a value names a file in a folder: nothing that leads elsewhere on any system."""
    if not isinstance(name, str) or name in ("", "..") or not name.isprintable():
        return False
    # Windows paths know both separators, and drives.
    return PureWindowsPath(name).name == name


def _find_shards(path: Path, names: list[str], weight_map: dict[str, str]) -> tuple[Path, ...]:
    """The weight files that an index names, in the order of their names."""
    files = sorted(set(weight_map.values()))
    missing = sorted(set(files).difference(names))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(files)} weight files that its index names "
            f"({_some(missing)}); download the checkpoint again."
        )
    return tuple(path / file for file in files)


def _merge(files: tuple[Path, ...], read_headers: HeaderReader) -> dict[str, SourceTensor]:
    """The tensors of all files, none of them twice."""
    tensors: dict[str, SourceTensor] = {}
    for file, header in zip(files, read_headers(files), strict=True):
        for name, tensor in header.items():
            if name in tensors:
                raise CheckpointError(
                    f"{file} and {tensors[name].file.name} both hold tensor {quoted(name)}; remove "
                    "the one that does not belong to the checkpoint, or download it again."
                )
            tensors[name] = tensor
    return tensors


def _check_index(index: Path, weight_map: dict[str, str], tensors: dict[str, SourceTensor]) -> None:
    """Check that the index and the weight files name the same tensors in the same places."""
    advice = "index and weights come from different versions, so download the checkpoint again."
    for name, tensor in tensors.items():
        file = weight_map.get(name, tensor.file.name)
        if file != tensor.file.name:
            raise CheckpointError(
                f"{index} puts tensor {quoted(name)} in {quoted(file)}, but it is in "
                f"{quoted(tensor.file.name)}; {advice}"
            )
    # The header leaves out buffers that no model needs, the index does not.
    missing = [n for n in weight_map if n not in tensors and not is_unneeded_buffer(n)]
    if missing:
        where = sorted({weight_map[name] for name in missing})
        raise CheckpointError(
            f"{index} puts {len(missing)} of its {len(weight_map)} tensors in files that lack them "
            f"({_some(missing)}, missing in {_some(where)}); {advice}"
        )
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        where = sorted({tensors[name].file.name for name in extra})
        raise CheckpointError(
            f"{index} does not list {len(extra)} of the tensors in {_some(where)} "
            f"({_some(extra)}); {advice}"
        )


def _refuse_quantized_config(path: Path, config: dict[str, Any]) -> None:
    if quantization := config.get("quantization_config"):
        known = isinstance(quantization, dict) and "quant_method" in quantization
        method = quoted(quantization["quant_method"]) if known else "unknown"
        raise _quantized(path, f"quant_method {method} in its config.json")


def _refuse_quantized_tensors(path: Path, names: Iterable[str]) -> None:
    for name in names:
        if name.endswith(_QUANTIZED):
            raise _quantized(path, f"it holds tensor {quoted(name)}")


def _quantized(path: Path, evidence: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is already quantized ({evidence}); use the original checkpoint that it was made "
        "from."
    )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions.")


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    text = ", ".join(quoted(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{text} and {more:,} more" if more > 0 else text
