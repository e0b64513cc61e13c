"""The header of a safetensors file, checked against every rule of the format.

The rules are those of the format's specification (the README of huggingface/safetensors), which
leave exactly one way to read a file: the tensors tile its data without gap or overlap. A file
that breaks one is damaged or hostile, and says so here rather than halfway through a build.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from quantkit.core.documents import parse_json
from quantkit.core.errors import SafetensorsError
from quantkit.core.files import GIT_LFS_POINTER, open_file
from quantkit.core.printable import quoted as quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor

LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_MAX_INTEGER = 2**63 - 1

# Bits, because the format's smallest floats share a byte.
_DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

# Constants that old exporters saved next to the weights, some as integers or booleans.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


def read_header(path: Path, *, any_dtype: bool = False) -> dict[str, SourceTensor]:
    """The tensors of a safetensors file by name, in the order of their offsets in it.

    Reads the header only, and keeps no file open. Old checkpoints hold a few buffers that no
    model needs (see `is_unneeded_buffer`): one of integers, booleans or doubles is left out, one
    of plain floats is listed like any tensor. With ``any_dtype`` everything is listed, as one needs
    of quantized files.

    Raises:
        SafetensorsError: the file cannot be read, breaks a rule of the format, is shorter or
            longer than its header says, or holds a tensor that is not F32, F16 or BF16.

    """
    raw, file_bytes = _read_raw_header(path)
    return parse_header(path, raw, file_bytes, any_dtype=any_dtype)


def parse_header(
    path: Path, raw: bytes, file_bytes: int, *, any_dtype: bool = False
) -> dict[str, SourceTensor]:
    """The tensors that a JSON header ``raw`` gives a file of ``file_bytes`` named ``path``.

    Raises:
        SafetensorsError: as `read_header` does.

    """
    entries = _parse(path, raw)
    _check_metadata(path, entries.pop("__metadata__", None))
    data_start = LENGTH_BYTES + len(raw)
    tensors = [_tensor(path, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    _check_tiling(path, tensors, data_start, file_bytes)
    found = {tensor.name: tensor for tensor in tensors}
    return found if any_dtype else only_floats(found)


def only_floats(tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Those that can be weights: all but buffers that no model needs.

    Raises:
        SafetensorsError: one is neither F32, F16 or BF16 nor such a buffer.

    """
    for tensor in tensors.values():
        if tensor.dtype not in FLOAT_BYTES and not is_unneeded_buffer(tensor.name):
            raise SafetensorsError(
                f"{tensor.file} holds tensor {quoted(tensor.name)} as {tensor.dtype}, but quantkit "
                "reads F32, F16 and BF16 weights only; if the checkpoint is already quantized use "
                "the original one, otherwise save it again in bfloat16 or float32."
            )
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype in FLOAT_BYTES}


def is_unneeded_buffer(name: str) -> bool:
    """Whether a tensor is a constant that models recompute: rotary frequencies, causal masks."""
    return name.endswith(_BUFFERS)


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    """The bytes of the JSON header, and the size of the whole file."""
    with open_file(path, error=SafetensorsError) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        try:
            start = file.read(len(GIT_LFS_POINTER))
            header_bytes = header_length(path, start, file_bytes)
            file.seek(LENGTH_BYTES)
            return file.read(header_bytes), file_bytes
        except OSError as error:
            raise SafetensorsError(
                f"{path} cannot be read ({error.strerror}); check the file and its permissions."
            ) from error


def header_length(path: Path, start: bytes, file_bytes: int) -> int:
    """Bytes of the JSON header that follows the first `LENGTH_BYTES` of a file.

    Args:
        path: the file's name in errors.
        start: its first bytes, at least 22 of them where it has as many.
        file_bytes: the size of the whole file.

    Raises:
        SafetensorsError: no file of this size has such a header.

    """
    header_bytes = int.from_bytes(start[:LENGTH_BYTES], "little")
    if start.startswith(GIT_LFS_POINTER):
        raise SafetensorsError(
            f"{path} is a Git LFS pointer and not the weights; run `git lfs pull` in its folder."
        )
    if file_bytes < LENGTH_BYTES:
        raise SafetensorsError(
            f"{path} is truncated: it has {file_bytes} bytes, too few for a safetensors file; "
            "download it again."
        )
    if header_bytes > _MAX_HEADER_BYTES:
        _broken(path, f"it claims a header of {header_bytes:,} bytes, above the format's 100 MB")
    if (missing := LENGTH_BYTES + header_bytes - file_bytes) > 0:
        raise SafetensorsError(
            f"{path} is truncated: at least {missing:,} bytes are missing, and its header ends "
            "past the end of the file; download it again."
        )
    return header_bytes


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The header's JSON object, with no key twice and no value that JSON does not know."""
    if not raw.startswith(b"{"):
        _broken(path, "its header does not begin with '{'")
    header: dict[str, Any] = parse_json(
        raw,
        f"{path} is not a valid safetensors file: its header",
        error=SafetensorsError,
        fix="download it again or save it again",
        plain=True,
    )
    return header


def _check_metadata(path: Path, metadata: object) -> None:
    if metadata is None:  # null, which safetensors' own library takes for an absent one
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _broken(path, "its __metadata__ is not a map of strings to strings")


def _tensor(path: Path, name: str, entry: object, data_start: int) -> SourceTensor:
    """One checked entry of the header, of any dtype that the format knows."""
    tensor = f"tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _broken(path, f"{tensor} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        _broken(path, f"{tensor} has the unknown dtype {quoted(dtype)}")
    if not _are_sizes(shape):
        _broken(path, f"{tensor} has the shape {quoted(shape)}, which is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _broken(path, f"{tensor} has the data_offsets {quoted(offsets)}, which are no range")
    begin, end = offsets
    n_bits = _DTYPE_BITS[dtype]
    for size in shape:
        n_bits *= size
        if n_bits > 8 * _MAX_INTEGER:
            _broken(path, f"{tensor} has the shape {quoted(shape)}, too large for any file")
    if n_bits != 8 * (end - begin):
        _broken(
            path,
            f"{tensor} takes {end - begin:,} bytes, which does not fit {dtype} and the shape "
            f"{quoted(shape)}",
        )
    return SourceTensor(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _are_sizes(value: object) -> bool:
    """Whether a value of the header is a list of integers that can count bytes or elements."""
    # isinstance would let booleans through, which JSON keeps apart from numbers.
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_INTEGER for n in value)


def _check_tiling(
    path: Path, tensors: list[SourceTensor], data_start: int, file_bytes: int
) -> None:
    """Check that tensors in the order of their offsets fill the data from its start to its end."""
    end = data_start
    for tensor in tensors:
        name = quoted(tensor.name)
        if tensor.offset < end:
            _broken(
                path, f"tensor {name} overlaps the one before it by {end - tensor.offset:,} bytes"
            )
        if tensor.offset > end:
            _broken(path, f"{tensor.offset - end:,} bytes before tensor {name} belong to no tensor")
        end += tensor.n_bytes
    if end > file_bytes:
        raise SafetensorsError(
            f"{path} is truncated: {end - file_bytes:,} bytes of its tensors are missing; "
            "download it again."
        )
    if end < file_bytes:
        _broken(path, f"{file_bytes - end:,} bytes after its last tensor belong to no tensor")


def _broken(path: Path, what: str) -> NoReturn:
    raise SafetensorsError(
        f"{path} is not a valid safetensors file: {what}; download it again or save it again."
    )
