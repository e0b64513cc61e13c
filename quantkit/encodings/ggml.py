"""ggml's own quantization kernels, called in the library that llama-cpp-python brings.

``ggml_quantize_chunk`` of ``ggml/src/ggml.c`` is what ``llama-quantize`` calls, so the bytes are
the same. Only ``libggml-base`` is loaded: neither llama.cpp itself nor its Python package.
ctypes releases the GIL for the duration of a call, so threads scale.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import NativeError, PlanError
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.sound import is_sound

_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
# Where every weighted square leaves float32, ggml finds no nearest point and ends the process.
_ON_GRIDS = frozenset({"IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M"})
_LARGEST_ON_GRID = 1e12
_REINSTALL = "reinstall it with: pip install --force-reinstall llama-cpp-python"


def library_path() -> Path:
    """The ``libggml-base`` inside the installed llama-cpp-python.

    Raises:
        NativeError: llama-cpp-python is not installed, or holds no such library.

    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise NativeError("llama-cpp-python is not installed; pip install llama-cpp-python.")
    name = _LIBRARY.get(sys.platform, "libggml-base.so")
    path = Path(spec.submodule_search_locations[0]) / "lib" / name
    if not path.is_file():
        raise NativeError(f"llama-cpp-python holds no {name} ({path.parent}); {_REINSTALL}.")
    return path


def version() -> str:
    """Which kernels these are: the version of llama-cpp-python, which pins llama.cpp's commit."""
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


class _Traits(ctypes.Structure):
    """``ggml_type_traits`` of ``ggml.h``, as far as it is read."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def library() -> ctypes.CDLL:
    """``libggml-base``, with the types of what is called in it."""
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        quantize = library.ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise NativeError(f"{path} cannot be used ({error}); {_REINSTALL}.") from None
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return library


def encode(
    rows: NDArray[np.float32],
    encoding: Encoding,
    importance: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    """The bytes of ``rows`` in a block format.

    Args:
        rows: shape (rows, columns), C-contiguous; columns are whole blocks; all finite.
        encoding: the block format.
        importance: one weight per column, float32, or None. Formats below 3 bits demand one.

    Returns:
        Shape (rows, row bytes).

    Raises:
        OverflowError: a scale left the range of its 16 bits, as with weights near 1e30.

    """
    n_rows, columns = rows.shape
    if encoding.name == "F32":
        return rows.view(np.uint8).reshape(n_rows, -1)
    if encoding.name in _ON_GRIDS and max(rows.max(), -rows.min()) > _LARGEST_ON_GRID:
        raise OverflowError(f"the weights are too large for {encoding.name}")
    out = np.empty((n_rows, encoding.row_bytes(columns)), np.uint8)
    library().ggml_quantize_chunk(
        encoding.id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    if not is_sound(out.reshape(-1), encoding):
        raise OverflowError(f"the weights are too large for {encoding.name}")
    return out


def decode(raw: NDArray[np.uint8], encoding: Encoding) -> NDArray[np.float32]:
    """The weights of whole blocks, as llama-quantize reads a quantized source; 1-D.

    Args:
        raw: bytes, 1-D and contiguous.
        encoding: their block format.

    Raises:
        OverflowError: a scale is not finite.
        PlanError: ggml has no way back from this format.

    """
    check(raw, encoding)
    to_float = library().ggml_get_type_traits(encoding.id).contents.to_float
    if not to_float:
        raise PlanError(f"ggml cannot turn {encoding.name} into floats; give another source.")
    out = np.empty(raw.size // encoding.bytes * encoding.elements, np.float32)
    to_float(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def check(raw: NDArray[np.uint8], encoding: Encoding) -> None:
    """Check that blocks are sound, as llama.cpp checks a file's.

    Raises:
        OverflowError: a scale is not finite.

    """
    if not is_sound(raw, encoding):
        raise OverflowError(f"its blocks of {encoding.name} are damaged")
