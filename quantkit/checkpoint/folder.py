"""A checkpoint folder as the Hugging Face Hub serves it: config.json and its weight files."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.names import PICKLED, weight_files
from quantkit.checkpoint.pth import read_pth
from quantkit.checkpoint.safetensors import is_unneeded_buffer, only_floats, read_header
from quantkit.checkpoint.shards import (
    HeaderReader,
    check_index,
    find_shards,
    left_out,
    merge,
    read_index,
    some_of,
)
from quantkit.core.documents import read_object
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.families import is_known

_EMBEDDINGS, _HEAD = "embed_tokens.weight", "lm_head.weight"

# What the common quantizers leave beside or instead of a weight.
_QUANTIZED = (
    ".qweight",  # GPTQ, AWQ
    ".weight_packed",  # compressed-tensors
    ".weight_scale",  # compressed-tensors, ModelOpt
    ".weight_scale_inv",  # FP8 in blocks
    ".absmax",  # bitsandbytes, 4 bit
    ".SCB",  # bitsandbytes, 8 bit
)

# Methods whose weights llama.cpp's converter reads.
_CONVERTED = ("fp8", "gptq", "compressed-tensors", "bitnet", "modelopt", "mxfp4")
_MODELOPT = "hf_quant_config.json"  # where ModelOpt says it, if not in config.json

# Methods that compute with rounded numbers even where the weights are stored as they were trained.
_ALWAYS_ROUNDED = ("bitnet",)


def open_folder(path: Path, names: list[str]) -> Checkpoint:
    """Read the headers of a checkpoint folder and check that they agree with each other.

    The weights are ``model.safetensors`` where it is there, as in transformers, else the files that
    ``model.safetensors.index.json`` names or, without an index, every ``model*.safetensors``; where
    there are none of these, ``pytorch_model*.bin`` in the same way. What that leaves out is
    remarked on: llama.cpp's converter goes by the index first.

    Args:
        path: the folder.
        names: what is in it, sorted.

    Raises:
        CheckpointError: the folder is incomplete, its index and its files disagree, or it is
            quantized already.
        SafetensorsError: a weight file breaks the format's rules.

    """
    if "config.json" not in names:
        raise _no_config(path, names)
    return read_checkpoint(path, names, read_weights)


def read_weights(files: Iterable[Path]) -> Iterable[dict[str, SourceTensor]]:
    """The tensors of weight files, of any dtype, one file after the other."""
    return (
        read_pth(file) if file.suffix == PICKLED else read_header(file, any_dtype=True)
        for file in files
    )


def is_artifact(path: Path, *, or_source: bool = False) -> bool:
    """Whether a folder is for transformers to run, and no source: its weights are quantized.

    What llama.cpp's converter reads is a source, but for the GPTQ of a family of ours, which
    quantkit itself reads. ``or_source``: GPTQ of any other counts as well.

    Raises:
        CheckpointError: the folder, its config.json or its index cannot be read.
        SafetensorsError: a weight file breaks the format's rules.

    """
    names = list_folder(path)
    if "config.json" not in names:
        return False
    config = read_json(path / "config.json")
    if not config.get("quantization_config"):
        return False
    method = _method_of(config)
    is_source = _MODELOPT in names or method in _CONVERTED
    if is_source and method != "gptq":
        return False
    own = ("bitsandbytes", "gptq") if or_source else ("bitsandbytes",)
    if not is_known(config) and method not in own:
        return False
    if not weight_files(names):
        return True
    return bool(_quantized_tensor(_read_tensors(path, config, names).tensors))


def open_quantized(path: Path) -> Checkpoint:
    """Read the headers of a quantized folder: its stored tensors, of whatever dtype.

    Raises:
        CheckpointError: the folder is missing, incomplete or not quantized, or its index and its
            files disagree.
        SafetensorsError: a weight file breaks the format's rules.

    """
    names = list_folder(path)
    if "config.json" not in names:
        raise CheckpointError(f"{path} has no config.json; give the folder of an artifact.")
    config = read_json(path / "config.json")
    if not isinstance(config.get("quantization_config"), dict):
        raise CheckpointError(
            f"{path} is not quantized: its config.json has no quantization_config; give the folder "
            "of a quantized artifact."
        )
    return _read_tensors(path, config, names)


def read_checkpoint(path: Path, names: list[str], read_headers: HeaderReader) -> Checkpoint:
    """Check config.json, the index and the headers of a checkpoint against each other.

    One that `is_foreign` has all its tensors as they are stored.

    Args:
        path: the folder with config.json and, where there is one, the index.
        names: the checkpoint's files, sorted; weight files among them need not be in ``path``.
        read_headers: gives the tensors of each weight file.

    Raises:
        CheckpointError, SafetensorsError: as `open_folder` does.

    """
    config = read_json(path / "config.json")
    quantization = config.get("quantization_config")
    if not is_known(config):
        return _read_tensors(path, config, names, read_headers)
    if _MODELOPT in names or _method_of(config) in _CONVERTED:
        stored = _read_tensors(path, config, names, read_headers)
        if _quantized_tensor(stored.tensors):
            return stored
    evidence = f"quant_method {_method(config)} in its config.json" if quantization else ""
    if quantization and _is_rounded(config):
        raise _quantized(path, evidence)
    found = read_index(path, names)
    if found and (name := _quantized_name(found[1])):
        raise _quantized(path, evidence or f"it holds tensor {quoted(name)}")
    checkpoint = _read_tensors(path, config, names, read_headers)
    odd = _quantized_tensor(checkpoint.tensors)
    if odd and (quantization or odd.endswith(_QUANTIZED)):
        raise _quantized(path, evidence or f"it holds tensor {quoted(odd)}")
    checkpoint = replace(checkpoint, tensors=only_floats(checkpoint.tensors))
    if not quantization:
        return checkpoint
    remark = (
        f"{path / 'config.json'} has a quantization_config ({_method(config)}), but no weight is "
        "quantized; it is left out."
    )
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return replace(checkpoint, config=plain, remarks=(*checkpoint.remarks, remark))


def is_foreign(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is for llama.cpp's converter to describe.

    That is one of no family of ours, or whose weights are stored in a form that the converter
    reads.
    """
    if checkpoint.description is not None:
        return True
    if not isinstance(checkpoint.config.get("architectures"), list):
        return False
    kinds = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return not is_known(checkpoint.config) or bool(kinds.difference(FLOAT_BYTES))


def _read_tensors(
    path: Path,
    config: dict[str, Any],
    names: list[str],
    read_headers: HeaderReader = read_weights,
) -> Checkpoint:
    files = tuple(path / name for name in weight_files(names))
    if found := read_index(path, names):
        index, weight_map = found
        files = find_shards(path, names, weight_map)
        tensors = merge(files, read_headers)
        check_index(index, weight_map, tensors)
    elif files:
        tensors = merge(files, read_headers)
    else:
        raise _no_weights(path, names)
    remarks = left_out(path, names, files, indexed=found is not None)
    return Checkpoint(path, config, _named_in_full(tensors), files, remarks=remarks)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    NaN and Infinity are taken, because transformers writes them.

    Raises:
        CheckpointError: the file is missing, unreadable, not JSON, or not a JSON object.

    """
    return read_object(path, error=CheckpointError)


def list_folder(path: Path) -> list[str]:
    """The names in a folder, sorted."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; give the folder of a downloaded checkpoint."
        ) from None
    except NotADirectoryError:
        raise CheckpointError(
            f"{path} is a file; give the folder that holds the checkpoint's config.json."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _no_config(path: Path, names: list[str]) -> CheckpointError:
    """Why a folder is not a checkpoint, as far as its names tell."""
    if "adapter_config.json" in names:
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        into = f" {quoted(base)}" if isinstance(base, str) and base else ""
        return CheckpointError(
            f"{path} is an adapter (LoRA) and no model; merge it into its base model{into} with "
            "peft's merge_and_unload, save that with save_pretrained, and give that folder."
        )
    if any(name.endswith(".gguf") for name in names):
        return CheckpointError(
            f"{path} holds GGUF files and no checkpoint; give one of them, the unquantized one, or "
            "the folder of the checkpoint that they were made from."
        )
    return CheckpointError(
        f"{path} has no config.json; give the folder of a Hugging Face checkpoint, downloaded "
        "with all its files."
    )


def _no_weights(path: Path, names: list[str]) -> CheckpointError:
    others = [n for n in names if n.endswith((".pt", ".pth", ".bin", ".safetensors"))]
    if others:
        return CheckpointError(
            f"{path} has no model*.safetensors and no pytorch_model*.bin, only {some_of(others)}; "
            "load it with what wrote it and call save_pretrained of transformers."
        )
    return CheckpointError(
        f"{path} has no model*.safetensors; download the checkpoint again, with its weights."
    )


def _named_in_full(tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors under the names of a model with its head.

    AutoModel saves the model inside alone, whose names lack ``model.``; transformers and, of a
    LlamaModel, llama.cpp's converter put it in front.
    """
    if _EMBEDDINGS not in tensors or any(name.startswith("model.") for name in tensors):
        return tensors
    full = {name: name if name == _HEAD else f"model.{name}" for name in tensors}
    return {full[name]: replace(tensor, name=full[name]) for name, tensor in tensors.items()}


def _method(config: Mapping[str, Any]) -> str:
    method = _method_of(config)
    return "unknown" if method is None else quoted(method)


def _method_of(config: Mapping[str, Any]) -> Any:
    settings = config.get("quantization_config")
    return settings.get("quant_method") if isinstance(settings, Mapping) else None


def _is_rounded(config: Mapping[str, Any]) -> bool:
    """Whether the model computes with rounded weights, however they are stored."""
    return _method_of(config) in _ALWAYS_ROUNDED


def _quantized_name(names: Iterable[str]) -> str | None:
    """The first tensor whose name is one that quantizers give."""
    return next((name for name in names if name.endswith(_QUANTIZED)), None)


def _quantized_tensor(tensors: Mapping[str, SourceTensor]) -> str | None:
    """The first tensor that a quantizer left, by its name or its dtype."""
    odd = (
        name
        for name, tensor in tensors.items()
        if tensor.dtype not in FLOAT_BYTES and not is_unneeded_buffer(name)
    )
    return _quantized_name(tensors) or next(odd, None)


def _quantized(path: Path, evidence: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is already quantized ({evidence}); use the original checkpoint that it was made "
        "from."
    )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions.")
