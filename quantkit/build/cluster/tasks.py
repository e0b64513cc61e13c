"""What runs on the nodes of a cluster.

A task reads the rows of its unit, encodes and writes them, and syncs what it wrote; only sums come
back. Processes of a node are used again, so each keeps the job that it worked on last.
"""

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantkit
from quantkit.build.encode import Encoder, sessions
from quantkit.build.executor import Crcs
from quantkit.build.output import Layout, PartialArtifact
from quantkit.build.readback import Written, read_back
from quantkit.build.source import Stamp, read_unit, stamp
from quantkit.build.units import Unit
from quantkit.checkpoint.folder import RowReader
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.core.errors import CheckpointError
from quantkit.encodings.kernel import load_kernel

MARKER = ".quantkit-cluster"


@dataclass(frozen=True, slots=True)
class Job:
    """What every task of a build needs to know; it goes to each process once.

    ``kernel`` is a kernel's name and search. Layouts of GGUFs come without their headers.
    """

    name: str
    out: Path
    layouts: tuple[Layout, ...]
    units: tuple[Unit, ...]
    read_rows: RowReader
    kernel: tuple[str, str]
    imatrix: Imatrix | None


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself.

    ``versions`` are quantkit's and the kernel's, ``lacking`` the source files that it does not see.
    """

    host: str
    versions: tuple[str, str]
    sees_output: bool
    lacking: tuple[str, ...]


class _Worker:
    """One process of a node, for one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.artifacts = [PartialArtifact(job.out, layout) for layout in job.layouts]
        for artifact in self.artifacts:
            artifact.reopen()
        self.encoder = Encoder(load_kernel(*job.kernel), job.imatrix, self.artifacts)

    def close(self) -> None:
        """Close the artifacts' files."""
        for artifact in self.artifacts:
            artifact.close()


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


def encode(name: str, reference: Sequence[Any], index: int) -> Crcs:
    """Encode one unit for every artifact; a CRC-32 of each piece. Its bytes are on the disk then.

    Args:
        name: of the job.
        reference: the job itself, where Ray keeps it; in a list, so that it is not fetched again.
        index: of the unit.

    """
    worker = _work_on(name, reference)
    unit = worker.job.units[index]
    raw = read_unit(unit, worker.job.read_rows)
    with sessions(worker.artifacts):
        crcs = worker.encoder.encode(unit, raw)
    for artifact, pieces in zip(worker.artifacts, crcs, strict=True):
        if pieces:
            artifact.sync()
    return crcs


def report_node(
    name: str, reference: Sequence[Any], files: Sequence[tuple[Path, int]]
) -> NodeReport:
    """What a node says of itself, once it has compiled the kernels that the job needs.

    Args:
        name: of the job, which the marker in the output folder bears.
        reference: the job.
        files: the source files that the node must have, with their sizes.

    """
    import ray

    job: Job = ray.get(reference[0])
    kernel = load_kernel(*job.kernel)
    sees_output = (job.out / MARKER).is_file() and (job.out / MARKER).read_text() == name
    lacking = [
        str(path) for path, size in files if not path.is_file() or path.stat().st_size != size
    ]
    if sees_output and not lacking:
        worker = _work_on(name, reference)
        worker.encoder.prepare(job.units, lambda _name: None)
    versions = (quantkit.__version__, kernel.version)
    return NodeReport(socket.gethostname(), versions, sees_output, tuple(lacking))


def hash_file(path: Path, known: Stamp) -> str:
    """The sha256 of a source file.

    Raises:
        CheckpointError: it changed meanwhile.

    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if stamp(path) != known:
        raise CheckpointError(f"{path} changed while it was read; run the same command again.")
    return sha256


def read_file_back(path: Path, header: bytes, size: int, written: Sequence[Written]) -> str:
    """The sha256 of a finished file, as `readback.read_back` finds it."""
    return read_back(path, header, size, written)
