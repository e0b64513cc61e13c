"""What a cluster adds to a build: its start, and what a task takes besides its work."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from quantkit.building.cluster.connection import connect
from quantkit.building.cluster.executor import ClusterExecutor
from quantkit.building.executor import EncodeRequest
from quantkit.building.output import PartialArtifact
from quantkit.building.source import Reading, stamps_of
from quantkit.building.units import cut_units
from quantkit.building.work import prepare
from quantkit.planning.quants import find_quants
from tests.large_checkpoints import large_checkpoint
from tests.measured import measure

_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class TaskCosts:
    """Seconds per task: ``core`` of its core, ``driver`` of processor of the one that drives."""

    core: float
    driver: float


def measure_task_costs(checkpoint: Path, folder: Path, count: int = 300) -> TaskCosts:
    """Encode one norm again and again, in tasks of a cluster of one processor.

    What is left of the work in such a task are 2,000 weights.
    """
    work = prepare(checkpoint, find_quants(["f32"]))
    stamps = stamps_of(work.checkpoint)
    units = cut_units([t.target for t in work.layouts[0].plan.tensors], work.checkpoint.tensors)
    small = min((unit for unit in units if unit.source), key=lambda unit: unit.n_bytes)
    with TemporaryDirectory(prefix="task-costs-", dir=folder) as name:
        artifact = PartialArtifact(Path(name), work.layouts[0])
        artifact.open()
        assignment = EncodeRequest(
            work,
            [artifact],
            [small] * count,
            # As if files were hashed already.
            Reading(stamps, hashed={path.name: "" for path in stamps}),
            threads=1,
            slots=1,
            keep=lambda _index, _crcs: None,
            passed=lambda _n_bytes: None,
            compiling=lambda _name: None,
        )
        with connect("local", local_jobs=1) as cluster:
            executor = ClusterExecutor(cluster, assignment)
            executor.prepare()
            for index in range(_WARM_UP):
                executor.submit(index)
            executor.drain()
            wall, processor = time.perf_counter(), time.process_time()
            for index in range(_WARM_UP, count):
                executor.submit(index)
            executor.finish()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            executor.close()
        artifact.close()
    return TaskCosts(wall / (count - _WARM_UP), processor / (count - _WARM_UP))


def measure_start(command: Sequence[str | Path], folder: Path) -> float:
    """Seconds of a command that builds, for a checkpoint of next to nothing.

    Args:
        command: as far as the checkpoint.
        folder: where to work.

    """
    with TemporaryDirectory(prefix="start-", dir=folder) as name:
        checkpoint = large_checkpoint(Path(name, "checkpoint"), "mistral", num_hidden_layers=1)
        return measure([*command, checkpoint, "-o", Path(name, "out")]).wall_seconds
