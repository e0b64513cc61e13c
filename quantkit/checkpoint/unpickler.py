"""An unpickler for what ``torch.save`` writes of tensors, which can do nothing else.

A pickle is a program. This unpickler knows a few names and hands out objects that can do nothing;
any other name ends it before anything is called.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from quantkit.core.printable import quoted

_MOST_DIMS = 8


_MOST_SIZE = 2**48  # elements of anything


# safetensors' names for what a storage holds, and its bytes. Only floats can be weights.
STORAGES = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """A storage: which entry of the zip, and what it holds."""

    key: str
    dtype: str
    n_elements: int


@dataclass(frozen=True, slots=True)
class StoredView:
    """A tensor: a view of a storage, offset and strides in elements."""

    storage: StoredBytes
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in their order, without gaps."""
        if 0 in self.shape:
            return True
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


class ForbiddenError(Exception):
    """A pickle asks for something that tensors do not need."""


class Container(dict[Any, Any]):
    """Stands for OrderedDict: a state dict sets an attribute (``_metadata``) on it."""

    __slots__ = ()


# What the pickle gets instead of the names it asks for. Instances that no opcode can change, and no
# classes, so that none can be made anew.
class _MakeContainer:
    __slots__ = ()

    def __call__(self) -> Container:
        return Container()


class _MakeTensor:
    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, stride: Any, *_others: Any
    ) -> StoredView:
        if not (
            isinstance(storage, StoredBytes)
            and are_sizes((offset,))
            and are_sizes(shape)
            and are_sizes(stride)
            and len(shape) == len(stride) <= _MOST_DIMS
        ):
            raise ForbiddenError("it holds a tensor that is not described as torch.save does it")
        return StoredView(storage, offset, tuple(shape), tuple(stride))


class _TakeTensor:
    """A parameter is its tensor, and whether it is trained."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_others: Any) -> StoredView:
        if not isinstance(tensor, StoredView):
            raise ForbiddenError("it holds a parameter that is not a tensor")
        return tensor


class _StorageKind:
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


# What torch.save has ever put into a state dict. The others make, of a few bytes, lists of any size
# (the memo of the unpickler in C is one) and arrays of bytes.
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.LIST),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.DICT),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.PERSID, pickle.BINPERSID),
    *(pickle.REDUCE, pickle.BUILD, pickle.NEWOBJ),
)


def _with_names(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    """An opcode that fills a dictionary from the stack, if what ``keys`` cuts out of it are names.

    A key is hashed, and the hash of a tuple in a tuple in a million others ends the process.
    """
    load = pickle._Unpickler.dispatch[opcode[0]]

    def load_checked(unpickler: Any) -> None:
        if not all(isinstance(key, str | int) for key in unpickler.stack[keys]):
            raise ForbiddenError("it holds a dictionary whose keys are no names")
        load(unpickler)

    return load_checked


def _leave_attributes_out(unpickler: Any) -> None:
    """BUILD: of a state dict nobody needs any; those of a tensor would not be checked."""
    unpickler.stack.pop()
    if not isinstance(unpickler.stack[-1], Container):
        raise ForbiddenError("it changes something that is not a dictionary")


class Unpickler(pickle._Unpickler):
    """Gives tensors and plain containers, or raises before it calls anything."""

    dispatch: ClassVar = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES}
    dispatch |= {
        pickle.SETITEM[0]: _with_names(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_names(pickle.SETITEMS, slice(None, None, 2)),
        pickle.DICT[0]: _with_names(pickle.DICT, slice(None, None, 2)),
        pickle.BUILD[0]: _leave_attributes_out,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name that a pickle asks for.

        Raises:
            ForbiddenError: tensors do not need it.

        """
        match module, name:
            case "collections", "OrderedDict":
                return _MakeContainer()
            case "torch._utils", "_rebuild_tensor_v2":
                return _MakeTensor()
            case "torch._utils", "_rebuild_parameter":
                return _TakeTensor()
            case "torch", _ if name in STORAGES:
                return _StorageKind(STORAGES[name][0])
            case "torch", _ if name.endswith("Storage"):
                raise ForbiddenError(f"it holds tensors of {quoted(name)}, not of plain numbers")
        raise ForbiddenError(
            f"it asks for {quoted(f'{module}.{name}')}, which no weights need, and was not run"
        )

    def persistent_load(self, pid: Any) -> StoredBytes:
        """The storage that a pickle refers to.

        Raises:
            ForbiddenError: it refers to something else.

        """
        match pid:
            case ("storage", _StorageKind() as kind, str() as key, _, int() as n_elements) if (
                are_sizes((n_elements,))
            ):
                return StoredBytes(key, kind.dtype, n_elements)
        raise ForbiddenError("it refers to something other than a storage")


def are_sizes(values: Any) -> bool:
    """Whether these are sizes, offsets or strides that a tensor can have."""
    return isinstance(values, tuple) and all(
        type(n) is int and 0 <= n <= _MOST_SIZE for n in values
    )
