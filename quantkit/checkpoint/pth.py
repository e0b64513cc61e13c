"""Tensors of a file that ``torch.save`` wrote, found without running anything that is in it.

Such a file is a zip: ``data.pkl`` describes the tensors as a pickle, and each storage lies beside
it, uncompressed, so that a tensor is a range of bytes of the file. A pickle is a program. This one
is run by an unpickler that knows a few names and hands out objects that can do nothing else; any
other name ends it before anything is called. Layout: PyTorch's ``torch/serialization.py``.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from quantkit.checkpoint.safetensors import GIT_LFS_POINTER, quoted
from quantkit.core.errors import CheckpointError
from quantkit.core.tensors import SourceTensor

_MOST_PICKLE_BYTES = 100 * 10**6
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
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except zipfile.BadZipFile:
        if _starts_as_pointer(path):
            raise CheckpointError(
                f"{path} is a Git LFS pointer and not the weights; run `git lfs pull` in its "
                "folder."
            ) from None
        raise CheckpointError(
            f"{path} is no zip file, as PyTorch has saved since 1.6; download it again, or if it "
            "is older load it with torch.load(weights_only=True) and save it anew."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); check the file and its "
            "permissions."
        ) from None


def _starts_as_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, SourceTensor]:
    entries = {info.filename: info for info in archive.infolist()}
    programs = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1 or programs[0].count("/") != 1:
        _refuse(path, "it has no data.pkl of torch.save")
    root = programs[0].removesuffix("data.pkl")
    if entries[programs[0]].file_size > _MOST_PICKLE_BYTES:
        _refuse(path, "its data.pkl has over 100 MB")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
        _refuse(path, "its bytes are in big-endian order")
    with archive.open(programs[0]) as stream:
        unpickler = _Unpickler(stream)
        try:
            state = unpickler.load()
        except _ForbiddenError as error:
            _refuse(path, str(error))
        except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
            _refuse(path, f"its data.pkl is damaged ({type(error).__name__})")
    if not isinstance(state, Mapping) or not state:
        _refuse(path, "it holds no tensors by name")
    file_bytes = path.stat().st_size
    tensors = {}
    with path.open("rb") as file:
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, _Tensor):
                _refuse(path, f"its entry {quoted(name)} is no tensor")
            info = entries.get(f"{root}data/{value.storage.key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                _refuse(path, f"the storage of {quoted(name)} is missing or compressed")
            start = _data_offset(file, info)
            item = _ITEM_BYTES[value.storage.dtype]
            n_bytes = prod(value.shape) * item
            first = value.offset * item
            if first + n_bytes > info.file_size or start + info.file_size > file_bytes:
                _refuse(path, f"{quoted(name)} reaches beyond its storage")
            if not value.is_contiguous:
                _refuse(path, f"{quoted(name)} is a view that is not contiguous")
            tensors[name] = SourceTensor(
                name, value.storage.dtype, value.shape, path, start + first, n_bytes
            )
    return tensors


def _data_offset(file: Any, info: zipfile.ZipInfo) -> int:
    """Where an entry's data begins; the local header's lengths may differ from the directory's."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER_BYTES + name + extra


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
            and len(shape) == len(stride)
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


class _Unpickler(pickle.Unpickler):
    """Gives tensors and plain containers, or raises before it calls anything."""

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
    return isinstance(values, tuple) and all(type(n) is int and n >= 0 for n in values)


def _refuse(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{path} is refused: {why}; don't trust it, download it again from its origin."
    )
