"""Tensors of a file that ``torch.save`` wrote, found without running anything that is in it.

Such a file is a zip: ``data.pkl`` describes the tensors as a pickle, and each storage lies beside
it, uncompressed, so that a tensor is a range of bytes of the file. A pickle is a program. This one
is run by an unpickler that knows a few names and hands out objects that can do nothing else; any
other name ends it before anything is called. Layout: PyTorch's ``torch/serialization.py``.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

from quantkit.core.errors import CheckpointError
from quantkit.core.files import GIT_LFS_POINTER, open_file
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor

_MOST_PICKLE_BYTES = 4 * 10**6  # a tensor takes some 200
_BYTE_ORDER_BYTES = 16
_MOST_DIMS = 8
_MOST_SIZE = 2**48  # elements of anything
_LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name
# safetensors' names for what a storage holds, and its bytes. Only floats can be weights.
_STORAGES = {
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
_ITEM_BYTES = dict(_STORAGES.values())


def read_pth(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a file by name, in its order, of any dtype. Reads no weights.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds anything but tensors in
            plain containers.

    """
    with open_file(path, error=CheckpointError) as file:
        try:
            if file.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER:
                raise CheckpointError(
                    f"{path} is a Git LFS pointer and not the weights; run `git lfs pull` in its "
                    "folder."
                )
            with zipfile.ZipFile(file) as archive:
                return _read(path, file, archive)
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror or error}); check the file and its "
                "permissions."
            ) from None
        except Exception:  # noqa: BLE001 - of a damaged archive zipfile raises eight kinds
            raise CheckpointError(
                f"{path} is no sound zip file, as PyTorch has saved since 1.6; download it again, "
                "or if it is older load it with torch.load(weights_only=True) and save it anew."
            ) from None


def _read(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> dict[str, SourceTensor]:
    entries = {info.filename: info for info in archive.infolist()}
    programs = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(entries) != len(archive.infolist()):
        _refuse(path, "it holds two entries of one name")
    if len(programs) != 1 or programs[0].count("/") != 1:
        _refuse(path, "it has no data.pkl of torch.save")
    root = programs[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and _stored(path, file, order, _BYTE_ORDER_BYTES) != b"little":
        _refuse(path, "its bytes are in big-endian order")
    state = _run(path, _stored(path, file, entries[programs[0]], _MOST_PICKLE_BYTES))
    if not isinstance(state, Mapping) or not state:
        _refuse(path, "it holds no tensors by name")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            _refuse(path, f"its entry {quoted(name)} is no tensor")
        info = entries.get(f"{root}data/{value.storage.key}")
        if info is None:
            _refuse(path, f"the storage of {quoted(name)} is missing")
        start = _data_offset(path, file, info)
        item = _ITEM_BYTES[value.storage.dtype]
        n_bytes = prod(value.shape) * item
        first = value.offset * item
        if first + n_bytes > info.file_size:
            _refuse(path, f"{quoted(name)} reaches beyond its storage")
        if not value.is_contiguous:
            _refuse(path, f"{quoted(name)} is a view that is not contiguous")
        tensors[name] = SourceTensor(
            name, value.storage.dtype, value.shape, path, start + first, n_bytes
        )
    return tensors


def _run(path: Path, program: bytes) -> Any:
    """What a pickle makes, of the few things that it may make."""
    try:
        return _Unpickler(io.BytesIO(program)).load()
    except _ForbiddenError as error:
        _refuse(path, str(error))
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        _refuse(path, f"its data.pkl is damaged ({type(error).__name__})")


def _stored(path: Path, file: BinaryIO, info: zipfile.ZipInfo, most: int) -> bytes:
    """The bytes of a small entry."""
    if info.file_size > most:
        _refuse(path, f"its {quoted(info.filename)} has over {most:,} bytes")
    file.seek(_data_offset(path, file, info))
    return file.read(info.file_size)


def _data_offset(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where an entry's data begins; the local header's lengths may differ from the directory's.

    torch.save compresses nothing and encrypts nothing, so every entry lies as it is, whole, in
    the file: none is inflated here.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        _refuse(path, f"its {quoted(info.filename)} is compressed or encrypted")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = info.header_offset + _LOCAL_HEADER_BYTES + name + extra
    end = start + info.file_size
    if info.compress_size != info.file_size or end > os.fstat(file.fileno()).st_size:
        _refuse(path, f"its {quoted(info.filename)} reaches beyond its end")
    return start


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


class _ForbiddenError(Exception):
    """A pickle asks for something that tensors do not need."""


class _Container(dict[Any, Any]):
    """Stands for OrderedDict: a state dict sets an attribute (``_metadata``) on it."""


# What the pickle gets instead of the names it asks for. Instances without a __dict__, so that no
# opcode can change them, and no classes, so that none can be made anew.
class _MakeContainer:
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Container:
        return _Container(*arguments)


class _MakeTensor:
    __slots__ = ()

    def __call__(
        self, storage: Any, offset: Any, shape: Any, stride: Any, *_others: Any
    ) -> _Tensor:
        if not (
            isinstance(storage, _Storage)
            and _are_sizes((offset,))
            and _are_sizes(shape)
            and _are_sizes(stride)
            and 1 <= len(shape) == len(stride) <= _MOST_DIMS
        ):
            raise _ForbiddenError("it holds a tensor that is not described as torch.save does it")
        return _Tensor(storage, offset, tuple(shape), tuple(stride))


class _TakeTensor:
    """A parameter is its tensor, and whether it is trained."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_others: Any) -> _Tensor:
        if not isinstance(tensor, _Tensor):
            raise _ForbiddenError("it holds a parameter that is no tensor")
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


class _Unpickler(pickle._Unpickler):
    """Gives tensors and plain containers, or raises before it calls anything."""

    dispatch: ClassVar = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return _MakeContainer()
            case "torch._utils", "_rebuild_tensor_v2":
                return _MakeTensor()
            case "torch._utils", "_rebuild_parameter":
                return _TakeTensor()
            case "torch", _ if name in _STORAGES:
                return _StorageKind(_STORAGES[name][0])
            case "torch", _ if name.endswith("Storage"):
                raise _ForbiddenError(f"it holds tensors of {quoted(name)}, not of plain numbers")
        raise _ForbiddenError(
            f"it asks for {quoted(f'{module}.{name}')}, which no weights need, and was not run"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageKind() as kind, str() as key, _, _) if (
                kind.dtype in _ITEM_BYTES
            ):
                return _Storage(key, kind.dtype)
        raise _ForbiddenError("it refers to something other than a storage")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(
        type(n) is int and 0 <= n <= _MOST_SIZE for n in values
    )


def _refuse(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{path} is refused: {why}; don't trust it, download it again from its origin."
    )
