"""What a layer gave, in files of the folder of a run: durable, and known by their CRC-32."""

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from quantkit.calibration.statistics import Sums
from quantkit.checkpoint.rows import read_stored
from quantkit.checkpoint.safetensors import read_header
from quantkit.core.errors import OutputError, SafetensorsError
from quantkit.core.writing import create, is_own, open_written
from quantkit.formats.safetensors import StoredTensor, place

_READ = 8 * 2**20


def write_parts(path: Path, parts: Iterable[bytes]) -> int:
    """Write a file durably; its CRC-32.

    Raises:
        OSError: it cannot be written.

    """
    crc = 0
    with create(path) as file:
        for part in parts:
            file.write(part)
            crc = zlib.crc32(part, crc)
        file.flush()
        os.fsync(file.fileno())
    return crc


def require_same(path: Path, crc: int | None) -> None:
    """Refuse a file of an earlier run that is not as it was written.

    Raises:
        OutputError: it is missing, or of another CRC-32; ``crc`` None is that of no file.
        OSError: it cannot be read.

    """
    found = None
    if is_own(path) and _is_whole(path):
        found = 0
        with open_written(path) as file:
            while data := file.read(_READ):
                found = zlib.crc32(data, found)
    if found is None or found != crc:
        raise OutputError(f"{path} is missing or damaged; delete {path.parent} to start over.")


def _is_whole(path: Path) -> bool:
    """Whether a file has the size that its header says, before gigabytes of another are read."""
    try:
        read_header(path)
    except SafetensorsError:
        return False
    return True


def write_sums(path: Path, sums: Mapping[str, Sums]) -> int:
    """Write what a layer's matrices saw, by role; the file's CRC-32.

    Raises:
        OSError: it cannot be written.

    """
    arrays = {f"{role}.squares": saw.squares for role, saw in sums.items()}
    arrays |= {f"{role}.counts": saw.counts for role, saw in sums.items()}
    shard = place(path.name, [StoredTensor(name, "F32", a.shape) for name, a in arrays.items()])
    data = (np.ascontiguousarray(arrays[t.name], "<f4").tobytes() for t in shard.tensors)
    return write_parts(path, (shard.header, *data))


def read_sums(path: Path, crc: int | None) -> dict[str, Sums]:
    """What `write_sums` wrote, by role.

    Raises:
        OutputError: it is missing, or not the file with this CRC-32.

    """
    require_same(path, crc)
    arrays = {
        name: read_stored(t, 0, t.n_bytes // t.row_bytes).view("<f4").reshape(t.shape)
        for name, t in read_header(path).items()
    }
    roles = [name.removesuffix(".squares") for name in arrays if name.endswith(".squares")]
    return {role: Sums(arrays[f"{role}.squares"], arrays[f"{role}.counts"]) for role in roles}
