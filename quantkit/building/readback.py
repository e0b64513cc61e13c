"""Reading a finished file back, to see that the disk holds what was written."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from quantkit.building.output import PartialArtifact
from quantkit.building.units import Unit
from quantkit.core.errors import OutputError
from quantkit.core.writing import open_written

_READ_BACK = 8 * 2**20

# What was written to a file: offset, bytes, CRC-32.
Written = tuple[int, int, int]


class ReadBackError(OutputError):
    """A file holds something else than was written."""


def written_to(
    artifact: PartialArtifact,
    number: int,
    units: Sequence[Unit],
    finished: Mapping[int, Sequence[Sequence[int] | None]],
    indices: Iterable[int] | None = None,
) -> list[list[Written]]:
    """What was written to each file of an artifact, by the journal.

    Args:
        artifact: whose files.
        number: its place among the artifacts of the build.
        units: of the build.
        finished: per unit and artifact, a CRC-32 of each piece; all of this artifact's are there.
        indices: the units to look at, None for all.

    """
    written: list[list[Written]] = [[] for _ in artifact.layout.files]
    places = list(artifact.completed)
    for index in range(len(units)) if indices is None else indices:
        unit = units[index]
        where = artifact.layout.places(unit.target, unit.row, unit.rows)
        places.extend(zip(where, finished[index][number] or (), strict=True))
    for place, crc in places:
        if place.file < len(written):  # what lies beyond is scratch
            written[place.file].append((place.offset, place.n_bytes, crc))
    return written


def read_back(
    path: Path,
    header: bytes,
    size: int,
    written: Sequence[Written],
    count: Callable[[int], None] = lambda _n_bytes: None,
) -> str:
    """The sha256 of a file that holds what was written.

    Args:
        path: the file.
        header: its first bytes.
        size: how long it must be.
        written: what comes after the header, in any order.
        count: told how many bytes were read.

    Raises:
        ReadBackError: it holds something else.
        OutputError: it has another size.

    """
    digest = hashlib.sha256()
    with open_written(path) as stream:
        for offset, n_bytes, crc in [(0, len(header), zlib.crc32(header)), *sorted(written)]:
            digest.update(stream.read(offset - stream.tell()))  # alignment padding
            found = 0
            for at in range(0, n_bytes, _READ_BACK):
                data = stream.read(min(_READ_BACK, n_bytes - at))
                digest.update(data)
                found = zlib.crc32(data, found)
            if found != crc:
                raise ReadBackError(
                    f"{path} does not read back as it was written; check the disk, then run the "
                    "same command again."
                )
            count(n_bytes)
        digest.update(stream.read())
        if stream.tell() != size:
            raise OutputError(f"{path} has {stream.tell()} bytes instead of {size}.")
    return digest.hexdigest()
