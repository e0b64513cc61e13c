"""What matrices are multiplied with, summed while llama.cpp computes. Only for the worker.

llama.cpp calls back for every node of its graph. Of those that multiply a weight with activations,
the activations' squares are summed by column, and by expert. Source: ``collect_imatrix`` in
llama.cpp's ``tools/imatrix/imatrix.cpp``, ``struct ggml_tensor`` in ``ggml/include/ggml.h``.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import NativeError, SmokeError
from quantkit.verification.library import ggml_library, library

_F32 = 0  # ggml_type
_LAYERS = ("blk.", "enc.blk.", "dec.blk.")
# Fewer rows than this are no text but a token, as llama-imatrix has it.
_FEWEST_ROWS = 16
_MOST_OPERATIONS = 512


class _Tensor(ctypes.Structure):
    pass


_Pointer = ctypes.POINTER(_Tensor)
_Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", _Pointer * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)


@dataclass(slots=True)
class Seen:
    """What one tensor saw: sums of squares, shape (matrices, columns), and how many rows.

    ``counts`` has one number per expert, or one for all matrices of a dense tensor.
    """

    squares: NDArray[np.float32]
    counts: NDArray[np.float32]


class Watch:
    """Sums by the tensors' names, and the callback that gathers them.

    An error in the callback cannot reach whoever called llama.cpp: it is kept until `require_fine`.
    """

    def __init__(self, seen: dict[str, Seen] | None = None) -> None:
        """Begin with nothing, or with what was seen before.

        Raises:
            NativeError: this llama.cpp has tensors of another layout than the one that is known.

        """
        self.seen: dict[str, Seen] = {} if seen is None else seen
        self._ggml = _functions()
        self._product, self._chosen = _operations(self._ggml)
        self._failure: Exception | None = None
        self.callback: Any = library().ggml_backend_sched_eval_callback(self._note)

    def require_fine(self) -> None:
        """Raise what went wrong in the callback.

        Raises:
            SmokeError: an activation is not finite, or of a kind that is not known.

        """
        if self._failure is not None:
            raise self._failure

    def _note(self, pointer: int, ask: bool, _user_data: object) -> bool:
        try:
            tensor = _Tensor.from_address(pointer)
            if ask:
                return self._failure is None and self._is_wanted(tensor)
            self._add(tensor)
        except Exception as error:  # noqa: BLE001 - nothing may pass through C
            self._failure = self._failure or error
        return self._failure is None

    def _is_wanted(self, tensor: _Tensor) -> bool:
        if tensor.op == self._chosen:
            return True
        if tensor.op != self._product:
            return False
        rows = tensor.src[1].contents
        if rows.ne[1] < _FEWEST_ROWS or rows.type != _F32:
            return False
        return _weight_name(tensor).startswith(_LAYERS)

    def _add(self, tensor: _Tensor) -> None:
        name, weight, rows = _weight_name(tensor), tensor.src[0].contents, tensor.src[1].contents
        if rows.type != _F32:
            raise SmokeError(f"llama.cpp multiplies {name} with what is not float32.")
        values = self._values(rows, np.dtype(np.float32))
        if tensor.op == self._chosen:
            ids = self._values(tensor.src[2].contents, np.dtype(np.int32))[0, 0]
            seen = self._entry(name, weight.ne[2], weight.ne[2], rows.ne[0])
            _add_chosen(seen, values[0], ids)
        else:
            matrices = weight.ne[2] * weight.ne[3]
            seen = self._entry(name, matrices, 1, rows.ne[0])
            _add_rows(seen, values, weight.ne[2], weight.ne[3])
        if not np.isfinite(seen.squares).all():
            raise SmokeError(
                f"llama.cpp computes NaN or infinite activations, which {name} is multiplied with."
            )

    def _entry(self, name: str, matrices: int, counts: int, columns: int) -> Seen:
        seen = self.seen.get(name)
        if seen is None:
            squares = np.zeros((matrices, columns), np.float32)
            seen = self.seen[name] = Seen(squares, np.zeros(counts, np.float32))
        if seen.squares.shape != (matrices, columns):
            raise SmokeError(
                f"{name} has {matrices} x {columns} inputs here and "
                f"{' x '.join(map(str, seen.squares.shape))} in what was gathered before."
            )
        return seen

    def _values(self, tensor: _Tensor, dtype: "np.dtype[Any]") -> NDArray[Any]:
        """A tensor's elements, slowest dimension first; a view, or a copy from a GPU."""
        address = ctypes.byref(tensor)
        n_bytes = self._ggml.ggml_nbytes(address)
        if self._ggml.ggml_backend_buffer_is_host(tensor.buffer):
            data = (ctypes.c_char * n_bytes).from_address(tensor.data)
        else:
            data = (ctypes.c_char * n_bytes)()
            self._ggml.ggml_backend_tensor_get(address, data, 0, n_bytes)
        return np.ndarray(tuple(tensor.ne)[::-1], dtype, data, 0, tuple(tensor.nb)[::-1])


def _add_chosen(seen: Seen, values: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
    """Rows to experts: ``values`` (tokens, used or 1, columns), ``ids`` (tokens, used)."""
    for slot in range(ids.shape[1]):
        rows, chosen = values[:, slot % values.shape[1]], ids[:, slot]
        for expert in np.unique(chosen):
            own = rows[chosen == expert]
            seen.squares[expert] += np.einsum("ij,ij->j", own, own)
            seen.counts[expert] += len(own)


def _add_rows(seen: Seen, values: NDArray[np.float32], inner: int, outer: int) -> None:
    """Rows to matrices: ``values`` (outer, inner, rows, columns), of as many matrices or more."""
    for i3, slab in enumerate(values):
        for i2, rows in enumerate(slab):
            matrix = i3 % outer * inner + i2 % inner
            seen.squares[matrix] += np.einsum("ij,ij->j", rows, rows)
    seen.counts += values[..., 0].size // (inner * outer)


def _weight_name(tensor: _Tensor) -> str:
    """The weight's name: ``CUDA0#blk.0.attn_k.weight#0`` is that of a copy on a GPU."""
    name: str = tensor.src[0].contents.name.decode(errors="replace")
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


def _functions() -> Any:
    ggml = ggml_library("ggml_backend_tensor_get")
    pointer, handle, size = _Pointer, ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_nbytes", size, (pointer,)),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, (handle,)),
        ("ggml_backend_tensor_get", None, (pointer, handle, size, size)),
        ("ggml_op_name", ctypes.c_char_p, (ctypes.c_int,)),
        ("ggml_init", handle, (_InitParams,)),
        ("ggml_free", None, (handle,)),
        ("ggml_set_name", pointer, (pointer, ctypes.c_char_p)),
        ("ggml_new_tensor_2d", pointer, (handle, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
        ("ggml_mul_mat", pointer, (handle, pointer, pointer)),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _operations(ggml: Any) -> tuple[int, int]:
    """The numbers of a product and of one with chosen experts, once tensors are what is known.

    Their layout is no promise of ggml's, so a product is made and looked at.
    """
    context = ggml.ggml_init(_InitParams(2**16, None, False))
    weight = ggml.ggml_new_tensor_2d(context, _F32, 5, 3)
    rows = ggml.ggml_new_tensor_2d(context, _F32, 5, 7)
    ggml.ggml_set_name(weight, b"weight")
    product = ggml.ggml_mul_mat(context, weight, rows).contents
    first, second = product.src[0], product.src[1]
    known = (
        tuple(product.ne) == (3, 7, 1, 1)
        and tuple(product.nb) == (4, 12, 84, 84)
        and bool(first and second)
        and ctypes.addressof(first.contents) == ctypes.addressof(weight.contents)
        and ctypes.addressof(second.contents) == ctypes.addressof(rows.contents)
        and first.contents.name == b"weight"
        and ggml.ggml_op_name(product.op) == b"MUL_MAT"
        and bool(product.data)
        and product.type == _F32
    )
    number = product.op
    ggml.ggml_free(context)
    if not known:
        raise NativeError(
            "This llama-cpp-python has tensors of another layout than quantkit knows; install the "
            "version that quantkit names."
        )
    names: Callable[[int], bytes] = ggml.ggml_op_name
    # The one with experts is the next, but its name is asked all the same.
    for operation in range(number, number + _MOST_OPERATIONS):
        if names(operation) == b"MUL_MAT_ID":
            return number, operation
    raise NativeError("This llama-cpp-python knows no experts; install it again.")
