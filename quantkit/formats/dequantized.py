"""Quantized artifacts seen as the checkpoint they were made from: names, shapes, dequantized rows.

A format takes part with one function, ``open_artifact(stored) -> Dequantized``, in the module that
``_READERS`` names. Nothing is dequantized before its rows are asked for.
"""

import importlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint, RowReader
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.folder import is_artifact, is_foreign, open_quantized
from quantkit.core.errors import CheckpointError
from quantkit.core.files import open_file
from quantkit.core.tensors import SourceTensor

# quant_method of config.json -> the module that reads such a folder
_READERS = {
    "bitsandbytes": "quantkit.formats.bnb.reader",
    "gptq": "quantkit.formats.gptq.reader",
}


@dataclass(frozen=True, slots=True)
class Dequantized:
    """A quantized folder as an unquantized checkpoint.

    ``checkpoint`` has the original names, shapes, and the dtypes that they dequantize to; offsets
    only say in which order to read. ``read_rows(name, first, count)`` gives rows as little-endian
    bytes of that dtype, 1-D. It is called from one thread at a time.
    """

    checkpoint: Checkpoint
    read_rows: RowReader


def is_own_artifact(folder: Path) -> bool:
    """Whether a folder is quantized in a form that quantkit itself dequantizes.

    GPTQ in other forms than `open_artifact` reads is a source, which llama.cpp's converter reads.

    Raises:
        CheckpointError, SafetensorsError: as `is_artifact` does.

    """
    if is_artifact(folder) or not is_artifact(folder, or_source=True):
        return is_artifact(folder)
    with suppress(CheckpointError):
        open_artifact(folder)
        return True
    return False


def open_artifact(folder: Path) -> Dequantized:
    """Read the headers of a quantized folder.

    Raises:
        CheckpointError: it is incomplete, damaged, not quantized, or in a format unknown here.
        MissingPackageError: its format needs a package that is not installed.

    """
    stored = open_quantized(folder)
    method = stored.config["quantization_config"].get("quant_method")
    if method not in _READERS:
        known = ", ".join(_READERS)
        raise CheckpointError(
            f"{folder} is quantized with {method!r}, which quantkit does not dequantize; it knows "
            f"{known}. Where llama.cpp's converter reads it, quantkit build makes GGUFs of it."
        )
    dequantized: Dequantized = importlib.import_module(_READERS[method]).open_artifact(stored)
    return dequantized


def as_checkpoint(folder: Path) -> Checkpoint:
    """A quantized folder as a checkpoint with dequantized rows.

    One of no family of ours is described by llama.cpp's converter.

    Raises:
        CheckpointError, MissingPackageError: as `open_artifact` does.
        ConverterError: the converter is needed and cannot be had, or does not describe it.

    """
    from quantkit.checkpoint.open import described

    source = open_artifact(folder)
    checkpoint = replace(source.checkpoint, read_rows=source.read_rows)
    return described(checkpoint, ConverterOptions()) if is_foreign(checkpoint) else checkpoint


def read_bytes(tensor: SourceTensor, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
    """Bytes ``start`` to ``stop`` of a stored tensor.

    Raises:
        CheckpointError: the file cannot be read.

    """
    n_bytes = (tensor.n_bytes if stop is None else stop) - start
    with open_file(tensor.file, error=CheckpointError) as file:
        try:
            file.seek(tensor.offset + start)
            data = np.frombuffer(bytearray(file.read(n_bytes)), np.uint8)
        except OSError as error:
            raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}.") from None
    if data.size != n_bytes:
        raise CheckpointError(f"{tensor.file} became shorter while it was read.")
    return data
