"""What runs on the nodes of a cluster.

A task reads the rows of its unit, encodes and writes them; only sums come back. Now and then one
syncs what all those of its node wrote. Processes of a node are used again, so each keeps the job
that it worked on last.
"""

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.building.cluster.calls import SLAB_MEMORY
from quantkit.building.encode import Encoder, sessions
from quantkit.building.executor import Crcs
from quantkit.building.heap import keep_freed
from quantkit.building.output import PartialArtifact, check_space, remove, sync_folder
from quantkit.building.source import read_unit
from quantkit.building.units import Unit
from quantkit.checkpoint.checkpoint import RowReader
from quantkit.checkpoint.converter.rows import ConvertedRows
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.core.errors import OutputError
from quantkit.core.files import read_file
from quantkit.core.version import __version__
from quantkit.core.writing import create, open_to_append, refuse_links, write_at_start
from quantkit.encodings.kernel import load_kernel
from quantkit.formats.layout import Layout

STORAGE = ".quantkit-storage"
"""A file in an output folder that tells it from those of the same name on other nodes' disks."""
_NAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class Job:
    """What every task of a build needs to know; it goes to each process once.

    ``kernel`` is a kernel's name and search. Layouts of GGUFs come without their headers. If it is
    ``scattered``, nodes have only some of the files.
    """

    name: str
    out: Path
    layouts: tuple[Layout, ...]
    units: tuple[Unit, ...]
    read_rows: RowReader
    kernel: tuple[str, str]
    imatrix: Imatrix | None
    scattered: bool


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself.

    ``versions`` are quantkit's and the kernel's, ``lacking`` the source files that it does not see.
    """

    host: str
    versions: tuple[str, str]
    lacking: tuple[str, ...]


class _Worker:
    """One process of a node, for one job."""

    def __init__(self, job: Job) -> None:
        keep_freed(SLAB_MEMORY)
        self.job = job
        self.artifacts = [PartialArtifact(job.out, layout) for layout in job.layouts]
        for artifact in self.artifacts:
            artifact.reopen(all_here=not job.scattered)
        self.encoder = Encoder(load_kernel(*job.kernel), job.imatrix, self.artifacts)

    def close(self) -> None:
        """Close the artifacts' files, and end what computes rows."""
        for artifact in self.artifacts:
            artifact.close()
        if isinstance(self.job.read_rows, ConvertedRows):
            self.job.read_rows.close()


_worker: _Worker | None = None


def _work_on(name: str, reference: Sequence[Any]) -> _Worker:
    """What this process works with on a job, which is fetched the first time."""
    global _worker
    if _worker is None or _worker.job.name != name:
        import ray

        if _worker is not None:
            _worker.close()
            _worker = None
        _worker = _Worker(ray.get(reference[0]))
    return _worker


def encode(
    name: str, reference: Sequence[Any], index: int, numbers: Sequence[int]
) -> tuple[str, Crcs]:
    """Encode one unit and write it; the node that this was on, and a CRC-32 of each piece.

    Args:
        name: of the job.
        reference: the job itself, where Ray keeps it; in a list, so that it is not fetched again.
        index: of the unit.
        numbers: of the artifacts to encode it for.

    """
    import ray

    worker = _work_on(name, reference)
    unit = worker.job.units[index]
    raw = read_unit(unit, worker.job.read_rows)
    with sessions(worker.artifacts):
        crcs = worker.encoder.encode(unit, raw, numbers)
    return ray.get_runtime_context().get_node_id(), crcs


def sync(name: str, reference: Sequence[Any]) -> None:
    """Force what any process of this node wrote to the disk."""
    for artifact in _work_on(name, reference).artifacts:
        artifact.sync()


def report_node(
    name: str, reference: Sequence[Any], files: Sequence[tuple[Path, int]]
) -> NodeReport:
    """What a node says of itself, once it has compiled the kernels that the job needs.

    Args:
        name: of the job.
        reference: the job.
        files: the source files that the node must have, with their sizes.

    """
    import ray

    job: Job = ray.get(reference[0])
    versions = (__version__, load_kernel(*job.kernel).version)
    lacking = [
        str(path) for path, size in files if not path.is_file() or path.stat().st_size != size
    ]
    if not lacking:
        _work_on(name, reference).encoder.prepare(job.units, lambda _name: None)
    return NodeReport(socket.gethostname(), versions, tuple(lacking))


def sees(path: Path) -> bool:
    """Whether there is such a file here."""
    return path.exists()


def name_storage(out: Path) -> str:
    """Make an output folder, if it is not there, and name it, if it has none; its name."""
    out.mkdir(parents=True, exist_ok=True)
    new = out / f"{STORAGE}.{uuid.uuid4().hex}"
    with create(new) as file:
        file.write(new.suffix.encode())
    try:
        os.link(new, out / STORAGE)  # as a whole, and only if nobody else was faster
    except FileExistsError:
        pass
    finally:
        new.unlink()
    name = read_file(out / STORAGE, most=_NAME_BYTES, error=OutputError, fix="remove it")
    return name.decode("ascii", errors="replace")


def make_files(partial: Path, final: Path, sizes: Sequence[tuple[str, int, bool]]) -> str:
    """Make the files of an artifact that are to lie here, at full size; the host's name.

    Args:
        partial: the artifact's folder under its partial name.
        final: the same under its own.
        sizes: of the files by name, and whether what they hold is kept.

    Raises:
        OutputError: the artifact already exists.
        NoSpaceError: the disk has no room for them.

    """
    if final.exists():
        raise OutputError(
            f"{final} is on {socket.gethostname()} already and was not built from this checkpoint "
            "with these settings; move it away or choose another folder with -o."
        )
    refuse_links(partial)
    partial.mkdir(parents=True, exist_ok=True)
    needed = 0
    for name, n_bytes, keep in sizes:
        if not keep:
            remove(partial / name)
        with open_to_append(partial / name) as file:
            needed += n_bytes - os.fstat(file.fileno()).st_blocks * 512
            file.truncate(n_bytes)
    check_space(partial, needed)
    return socket.gethostname()


def sizes_of(folder: Path) -> dict[str, int]:
    """The sizes of the files in a folder by name; nothing where there is no folder."""
    if not folder.is_dir():
        return {}
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def write_headers(partial: Path, headers: Sequence[tuple[str, bytes]]) -> None:
    """Write the headers of files, by name."""
    for name, header in headers:
        write_at_start(partial / name, header)


def rename(partial: Path, final: Path) -> None:
    """Give an artifact's folder its name, durably."""
    if partial.exists():
        partial.rename(final)
        sync_folder(final.parent)
