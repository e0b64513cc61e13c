"""Tensors of a file that ``torch.save`` wrote, found without running anything that is in it.

Such a file is a zip: ``data.pkl`` describes the tensors as a pickle, and each storage lies beside
it, uncompressed, so that a tensor is a range of bytes of the file. A pickle is a program. This one
is run by an unpickler that knows a few names and hands out objects that can do nothing else; any
other name ends it before anything is called. Layout: PyTorch's ``torch/serialization.py``.
"""

import io
import os
import zipfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from quantkit.checkpoint.unpickler import STORAGES, ForbiddenError, StoredView, Unpickler
from quantkit.checkpoint.window import Window
from quantkit.core.errors import CheckpointError
from quantkit.core.files import GIT_LFS_POINTER, open_file
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor

_MOST_PICKLE_BYTES = 4 * 10**6  # a tensor takes some 200
_BYTE_ORDER_BYTES = 16


_LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name
_HAS_DESCRIPTOR = 8  # a flag of an entry
_DESCRIPTOR_BYTES = (16, 24)
_ALIGNMENT = 64
_MOST_PADDING = 4 + 28 + 64  # behind the name: a field's head, sizes of 64 bits, what aligns
# How a file begins that an older PyTorch wrote: with a pickle of its magic number.
_BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


_ITEM_BYTES = dict(STORAGES.values())


def read_pth(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a file by name, in its order, of any dtype. Reads no weights.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds anything but tensors in
            plain containers.

    """
    with open_file(path, error=CheckpointError) as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        try:
            return parse_pth(path, Window(os.fstat(file.fileno()).st_size, read))
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror or error}); check the file and its "
                "permissions."
            ) from None


def parse_pth(path: Path, file: Window) -> dict[str, SourceTensor]:
    """The tensors of a file that is named ``path`` and lies wherever ``file`` reads it.

    Raises:
        CheckpointError: as `read_pth` does, or ``file`` cannot be read.
        OSError: by ``file``.

    """
    try:
        with zipfile.ZipFile(cast("IO[bytes]", file)) as archive:
            return _read(path, file, archive)
    except (CheckpointError, OSError):
        raise
    except Exception:  # noqa: BLE001 - of a damaged archive zipfile raises eight kinds
        raise _no_zip(path, file.read_at(0, len(GIT_LFS_POINTER))) from None


def _no_zip(path: Path, start: bytes) -> CheckpointError:
    """What is wrong with a file that is not a sound zip and begins with these bytes."""
    if start == GIT_LFS_POINTER:
        return CheckpointError(
            f"{path} is a Git LFS pointer and not the weights; run `git lfs pull` in its folder."
        )
    if start.startswith(_BEFORE_ZIP):
        return CheckpointError(
            f"{path} was saved by a PyTorch before 1.6, or in that format; load it with "
            "torch.load(weights_only=True) and save it again with safetensors."
        )
    return CheckpointError(
        f"{path} is not a sound zip file, as PyTorch has saved since 1.6; download it again, or if "
        "it is older load it with torch.load(weights_only=True) and save it again with safetensors."
    )


def _read(path: Path, file: Window, archive: zipfile.ZipFile) -> dict[str, SourceTensor]:
    entries = {info.filename: info for info in archive.infolist()}
    programs = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(entries) != len(archive.infolist()):
        _refuse(path, "it holds two entries of one name")
    if len(programs) != 1 or programs[0].count("/") != 1:
        _refuse(path, "it has no data.pkl of torch.save")
    root = programs[0].removesuffix("data.pkl")
    for info in entries.values():
        _check_entry(path, info, archive.start_dir)
    # What torch.save writes before the first storage comes in one piece.
    storages = [i.header_offset for name, i in entries.items() if name.startswith(f"{root}data/")]
    file.prefetch(min(storages, default=0))
    order = entries.get(f"{root}byteorder")
    if order is not None and _stored(path, file, order, _BYTE_ORDER_BYTES) != b"little":
        _refuse(path, "its bytes are in big-endian order")
    state = _run(path, _stored(path, file, entries[programs[0]], _MOST_PICKLE_BYTES))
    if not isinstance(state, Mapping) or not state:
        _refuse(path, "it holds no tensors by name")
    ends = _ends(entries.values(), archive.start_dir) if file.is_far else {}
    places: dict[str, tuple[int, int]] = {}  # of a storage: where it begins and ends
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredView):
            _refuse(path, f"its entry {quoted(name)} is not a tensor")
        storage = value.storage
        if storage.key not in places:
            entry = entries.get(f"{root}data/{storage.key}")
            if entry is None:
                _refuse(path, f"the storage of {quoted(name)} is missing")
            at = _torch_offset(entry, ends[entry.header_offset]) if file.is_far else None
            at = at or _data_offset(path, file, entry)
            places[storage.key] = at, at + entry.file_size
        start, end = places[storage.key]
        item = _ITEM_BYTES[storage.dtype]
        if storage.n_elements * item != end - start:
            _refuse(
                path,
                f"the storage of {quoted(name)} has {end - start:,} bytes instead of the "
                f"{storage.n_elements * item:,} that data.pkl says",
            )
        first = start + value.offset * item
        n_bytes = prod(value.shape) * item
        if first + n_bytes > end:
            _refuse(path, f"{quoted(name)} reaches beyond its storage")
        if not value.is_contiguous:
            raise CheckpointError(
                f"{path} holds {quoted(name)} as a view whose rows do not lie one after the other; "
                "load it with torch.load(weights_only=True) and save it again with safetensors, "
                "every tensor made contiguous()."
            )
        tensors[name] = SourceTensor(name, storage.dtype, value.shape, path, first, n_bytes)
    if any(one[1] > other[0] for one, other in pairwise(sorted(places.values()))):
        _refuse(path, "two of its storages overlap")
    return tensors


def _run(path: Path, program: bytes) -> Any:
    """What a pickle makes, of the few things that it may make."""
    try:
        return Unpickler(io.BytesIO(program)).load()
    except ForbiddenError as error:
        _refuse(path, str(error))
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        _refuse(path, f"its data.pkl is damaged ({type(error).__name__})")


def _check_entry(path: Path, info: zipfile.ZipInfo, end: int) -> None:
    """Check that an entry lies in the file as it is, whole, before the directory at its end.

    torch.save compresses nothing and encrypts nothing, so none is inflated here.
    """
    name = quoted(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        _refuse(path, f"its {name} is compressed or encrypted")
    if info.compress_size != info.file_size:
        _refuse(path, f"its {name} has two sizes")
    if not 0 <= info.header_offset <= end - _LOCAL_HEADER_BYTES - info.file_size:
        _refuse(path, f"its {name} reaches beyond its end")


def _stored(path: Path, file: Window, info: zipfile.ZipInfo, most: int) -> bytes:
    """The bytes of a small entry."""
    if info.file_size > most:
        _refuse(path, f"its {quoted(info.filename)} has over {most:,} bytes")
    start = _data_offset(path, file, info)
    return file.read_at(start, start + info.file_size)


def _data_offset(path: Path, file: Window, info: zipfile.ZipInfo) -> int:
    """Where an entry's data begins; the local header's lengths may differ from the directory's."""
    header = file.read_at(info.header_offset, info.header_offset + _LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = info.header_offset + _LOCAL_HEADER_BYTES + name + extra
    if start + info.file_size > file.n_bytes:
        _refuse(path, f"its {quoted(info.filename)} reaches beyond its end")
    return start


def _ends(entries: Iterable[zipfile.ZipInfo], end: int) -> dict[int, int]:
    """Where the next entry begins, or the directory, by where an entry begins."""
    starts = sorted({info.header_offset for info in entries})
    return dict(pairwise([*starts, end]))


def _torch_offset(info: zipfile.ZipInfo, end: int) -> int | None:
    """Where the data of an entry begin that torch.save wrote, None if another wrote it.

    A request over the network for every local header would take longer than all the rest, and
    torch.save leaves no choice: it fills a local header up so that the data begin at a multiple of
    64, and writes a data descriptor behind them (24 bytes where sizes or offsets take 64 bits),
    after which the next entry begins. See ``PyTorchStreamWriter`` in ``caffe2/serialize``.

    Args:
        info: the entry.
        end: where the next one begins.

    """
    if not info.flag_bits & _HAS_DESCRIPTOR:
        return None
    least = info.header_offset + _LOCAL_HEADER_BYTES + len(info.filename.encode())
    for descriptor in _DESCRIPTOR_BYTES:
        start = end - descriptor - info.file_size
        if start % _ALIGNMENT == 0 and least < start <= least + _MOST_PADDING:
            return start
    return None


def _refuse(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{path} is refused: {why}; don't trust it, download it again from its origin."
    )
