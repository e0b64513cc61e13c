"""How long a GGUF file should be, by ggml's own reader. Only ever imported in the worker."""

import ctypes
import os
from pathlib import Path
from typing import Any

from quantkit.core.errors import SmokeError
from quantkit.verification.library import complaint, errors, ggml_library


def data_end(file: Path) -> tuple[int, int]:
    """Where the header says that a GGUF file ends: without and with its last padding, in bytes.

    Raises:
        SmokeError: ggml's own reader refuses the header.

    """
    gguf = _gguf_functions()
    errors.clear()
    context = gguf.gguf_init_from_file(os.fsencode(file), _GGUFParams(no_alloc=True, ctx=None))
    if not context:
        raise SmokeError(f"{file.name} has a broken header: {complaint()}.")
    alignment = gguf.gguf_get_alignment(context)
    start = gguf.gguf_get_data_offset(context)
    last = gguf.gguf_get_n_tensors(context) - 1
    size = 0
    if last >= 0:
        size = gguf.gguf_get_tensor_offset(context, last) + gguf.gguf_get_tensor_size(context, last)
    gguf.gguf_free(context)
    end = start + size
    return end, -(-end // alignment) * alignment


def check_size(file: Path) -> None:
    """Compare the size of a GGUF file with what its header says.

    Raises:
        SmokeError: it is another, or ggml's own reader refuses the header.

    """
    end, padded_end = data_end(file)
    size = file.stat().st_size
    if not end <= size <= padded_end:
        cause = "it is truncated" if size < end else "something was appended to it"
        raise SmokeError(
            f"{file.name} has {size:,} bytes where its header accounts for {padded_end:,}: "
            f"{cause}, or its header is damaged."
        )


class _GGUFParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _gguf_functions() -> Any:
    gguf = ggml_library("gguf_init_from_file")
    handle, size, index = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", handle, (ctypes.c_char_p, _GGUFParams)),
        ("gguf_get_alignment", size, (handle,)),
        ("gguf_get_data_offset", size, (handle,)),
        ("gguf_get_n_tensors", index, (handle,)),
        ("gguf_get_tensor_offset", size, (handle, index)),
        ("gguf_get_tensor_size", size, (handle, index)),
        ("gguf_free", None, (handle,)),
    ):
        function = getattr(gguf, name)
        function.restype, function.argtypes = result, arguments
    return gguf
