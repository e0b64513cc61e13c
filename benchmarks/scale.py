"""How long a build on a cluster takes, by the number of nodes, and what limits it.

``python -m benchmarks.scale`` measures what units, tasks and starting cost here, and projects 20
quants of Mixtral-8x22B onto clusters of 1 to 64 nodes. ``--check`` sets the model beside builds of
a small Mixtral on this machine: by threads, on a node that runs already (``--cluster auto``), and
on one that starts and ends with the build (``--cluster local``). The status is 1 if a node that
runs takes more than 1.15 times as long as threads.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from benchmarks.build import (
    QUANTS,
    add_checkpoint_options,
    make_checkpoint,
    read_through,
    working_folder,
)
from benchmarks.scale_model import (
    Cluster,
    Prediction,
    Sizes,
    predict_cluster,
    predict_threads,
    sizes_of,
)
from benchmarks.scale_plot import draw
from benchmarks.task_costs import TaskCosts, measure_start, measure_task_costs
from benchmarks.unit_costs import UnitCosts, cost_tables, measure_unit_costs
from quantkit.building.work import Work, prepare
from quantkit.core.errors import ImatrixError
from quantkit.core.profiles import load_profile
from quantkit.core.units import format_size, parse_size
from quantkit.families import find_family
from quantkit.formats.layout import FileOptions
from quantkit.planning.plan import make_plan
from quantkit.planning.quants import all_quants, find_quants
from quantkit.verification.machine import cpu_name, usable_cores
from tests.large_checkpoints import large_checkpoint
from tests.measured import measure, unwind_on_sigterm
from tests.ray_nodes import running

NODES = (1, 2, 4, 8, 16, 32, 64)
LIMIT = 1.15  # of the time of as many threads
# Ways to build: the options of each.
WAYS = {"threads": [], "auto": ["--cluster", "auto"], "local": ["--cluster", "local"]}
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured; ``start`` is the whole time of a build of next to nothing, by way."""

    unit: UnitCosts
    task: TaskCosts
    start: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to build on this machine: what the model says, and what runs took."""

    name: str
    jobs: int
    predicted: Prediction
    seconds: tuple[float, ...]


def main() -> int:
    options = parse_options()
    unwind_on_sigterm()
    with working_folder(options.folder) as folder:
        return check(folder, options) if options.check else project(folder, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="work here; a checkpoint left here is reused")
    parser.add_argument("--units", type=int, default=5, help="measure the steps on so many units")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    checks = parser.add_argument_group("--check")
    checks.add_argument("--check", action="store_true", help="build here and compare")
    checks.add_argument("--quants", nargs="+", default=list(QUANTS))
    checks.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="side by side")
    checks.add_argument("--rounds", type=int, default=3, help="of each contestant, in turn")
    add_checkpoint_options(parser)
    cluster = parser.add_argument_group("the cluster that is projected")
    cluster.add_argument("--costs", type=Path, help="measured before: what --json wrote")
    cluster.add_argument("--nodes", type=int, nargs="+", default=list(NODES))
    cluster.add_argument("--cores", type=int, default=16, help="per node")
    cluster.add_argument(
        "--link", type=float, default=10.0, help="of a node, Gbit/s in each direction"
    )
    cluster.add_argument(
        "--storage", type=parse_size, default="5GB", help="what the shared folder moves per second"
    )
    cluster.add_argument(
        "--hub", type=parse_size, help="the checkpoint is on a Hub that gives so much per second"
    )
    cluster.add_argument("--shard-size", type=parse_size, help="as of quantkit build")
    cluster.add_argument("--plot", type=Path, help="draw the times into this file")
    return parser.parse_args()


def check(folder: Path, options: argparse.Namespace) -> int:
    checkpoint = make_checkpoint(folder / "checkpoint", options)
    sizes = sizes_of(prepare(checkpoint, find_quants(options.quants)))
    contestants: list[Contestant] = []
    measured: dict[int, Costs] = {}
    for jobs in options.jobs:
        with one_node(jobs):
            measured[jobs] = costs = measure_costs(
                checkpoint, options.quants, folder, jobs, options, WAYS
            )
            predicted = predict_here(sizes, costs, jobs)
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way, taken in seconds.items():
                    command = build_command(way, jobs, options.quants)
                    taken.append(build(command, checkpoint, folder / "out"))
                    console.print(f"{way}, {jobs} jobs: {taken[-1]:.1f} s")
        contestants += [
            Contestant(way, jobs, predicted[way], tuple(taken)) for way, taken in seconds.items()
        ]
    ratios = {
        f"{way}, {jobs} jobs": median_of(contestants, way, jobs)
        / median_of(contestants, "threads", jobs)
        for jobs in options.jobs
        for way in ("auto", "local")
    }
    for table in cost_tables(measured[max(options.jobs)].unit):
        console.print(table)
    console.print(check_table(contestants, options.rounds))
    for name, ratio in ratios.items():
        console.print(f"--cluster {name}: {ratio:.3f} times as long as threads")
    worst = ratios[f"auto, {max(options.jobs)} jobs"]
    console.print(f"On a node that runs, at most {LIMIT}: {worst <= LIMIT}")
    report = {
        "sizes": asdict(sizes),
        "measured": {str(jobs): asdict(costs) for jobs, costs in measured.items()},
        "contestants": [asdict(contestant) for contestant in contestants],
        "ratios": ratios,
    }
    write_report(report, options)
    return 0 if worst <= LIMIT else 1


def predict_here(sizes: Sizes, costs: Costs, jobs: int) -> dict[str, Prediction]:
    """Times on this machine, whose disk takes what is written; its page cache has the rest."""
    here = Cluster(
        nodes=1,
        cores=jobs,
        write=1 / costs.unit.sync if costs.unit.sync else float("inf"),
        task=costs.task.core,
        driver=costs.task.driver,
    )
    threads = predict_threads(sizes, costs.unit, jobs, usable_cores(), costs.start["threads"])
    clusters = {
        way: predict_cluster(sizes, costs.unit, replace(here, start=costs.start[way]))
        for way in ("auto", "local")
    }
    return {"threads": threads, **clusters}


@contextmanager
def one_node(processors: int) -> Iterator[None]:
    """A Ray cluster of one node, which ``--cluster auto`` finds."""
    with running((), processors=processors) as nodes, patch.dict(os.environ, nodes.environment):
        yield


def measure_costs(
    checkpoint: Path,
    quants: Sequence[str],
    folder: Path,
    jobs: int,
    options: argparse.Namespace,
    ways: Iterable[str],
) -> Costs:
    console.print(f"Measuring what units and tasks cost with {jobs} cores at work")
    with_f32 = tuple(dict.fromkeys([*quants, "f32"]))  # which norms and routers are in any quant
    return Costs(
        measure_unit_costs(checkpoint, with_f32, folder, options.units, jobs),
        measure_task_costs(checkpoint, folder),
        {way: measure_start(build_command(way, jobs, quants), folder) for way in ways},
    )


def build_command(way: str, jobs: int, quants: Sequence[str]) -> list[str | Path]:
    wanted = [word for quant in quants for word in ("-q", quant)]
    build = [sys.executable, "-m", "quantkit", "build"]
    return [*build, *wanted, "--jobs", str(jobs), "--no-smoke", *WAYS[way]]


def build(command: Sequence[str | Path], checkpoint: Path, out: Path) -> float:
    """Seconds of a build with the source in the page cache and nothing waiting for the disk."""
    shutil.rmtree(out, ignore_errors=True)  # of a run that was killed
    for file in checkpoint.glob("*.safetensors"):
        read_through(file)
    os.sync()
    try:
        return measure([*command, checkpoint, "-o", out]).wall_seconds
    finally:
        shutil.rmtree(out, ignore_errors=True)


def median_of(contestants: Sequence[Contestant], name: str, jobs: int) -> float:
    [found] = [c for c in contestants if (c.name, c.jobs) == (name, jobs)]
    return median(found.seconds)


def check_table(contestants: Sequence[Contestant], rounds: int) -> Table:
    title = f"Seconds, medians of {rounds}: predicted and measured"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("jobs", "start", "encode", "read back", "predicted", "measured", "ratio"):
        table.add_column(heading, justify="right")
    for contestant in contestants:
        predicted, measured = contestant.predicted, median(contestant.seconds)
        encode = max(predicted.encode.values()) + predicted.end
        phases = (predicted.start, encode, max(predicted.verify.values()), predicted.seconds)
        figures = [f"{seconds:.1f}" for seconds in (*phases, measured)]
        ratio = f"{measured / predicted.seconds:.2f}"
        table.add_row(contestant.name, str(contestant.jobs), *figures, ratio)
    return table


def project(folder: Path, options: argparse.Namespace) -> int:
    with TemporaryDirectory(prefix="hollow-", dir=folder) as name:
        started = time.perf_counter()
        work = plan_mixtral_8x22b(Path(name), options.shard_size)
        sizes = sizes_of(work)
        planning = time.perf_counter() - started
    quants = [layout.plan.quant.name for layout in work.layouts]
    if options.costs:
        costs = read_costs(json.loads(options.costs.read_text())["costs"])
    else:
        checkpoint = make_checkpoint(folder / "checkpoint", options)
        costs = measure_costs(checkpoint, quants, folder, usable_cores(), options, ["local"])
    start = costs.start["local"] + planning
    link = options.link * 1e9 / 8
    cluster = Cluster(
        nodes=1,
        cores=options.cores,
        read=link,
        write=link,
        storage=options.storage,
        hub=options.hub,
        task=costs.task.core,
        driver=costs.task.driver,
        start=start,
    )
    predictions = {
        nodes: predict_cluster(sizes, costs.unit, replace(cluster, nodes=nodes))
        for nodes in options.nodes
    }
    for table in cost_tables(costs.unit):
        console.print(table)
    console.print(describe(sizes, quants, costs, cluster))
    console.print(projection_table(predictions))
    if options.plot:
        draw(predictions, "Mixtral-8x22B, 20 quants", options.plot)
    report = {
        "costs": asdict(costs),
        "quants": quants,
        "sizes": asdict(sizes),
        "cluster": asdict(cluster),
        "predictions": {nodes: asdict(p) for nodes, p in predictions.items()},
    }
    write_report(report, options)
    return 0


def plan_mixtral_8x22b(folder: Path, shard_size: int | None) -> Work:
    """Every GGUF quant that needs no importance matrix, but f32, of files without weights."""
    config = load_profile("models/mixtral-8x22b.toml")["config"]
    checkpoint = large_checkpoint(folder / "Mixtral-8x22B", hollow=True, **config)
    model = find_family(config).describe(config, ())
    quants = []
    for quant in all_quants().values():
        try:
            make_plan(model, quant)
        except ImatrixError:
            continue
        quants.append(quant)
    wanted = [quant for quant in quants if quant.name != "f32"]
    return prepare(checkpoint, wanted, FileOptions(shard_size=shard_size))


def read_costs(stored: Mapping[str, Any]) -> Costs:
    unit, task = UnitCosts(**stored["unit"]), TaskCosts(**stored["task"])
    return Costs(unit, task, stored["start"])


def describe(sizes: Sizes, quants: Sequence[str], costs: Costs, cluster: Cluster) -> str:
    where = "the shared folder"
    if cluster.hub is not None:
        where = f"a Hub ({format_size(int(cluster.hub))}/s)"
    return (
        f"{len(quants)} quants: {', '.join(quants)}\n"
        f"{sizes.n_units:,} units, {format_size(sizes.source_bytes)} of checkpoint in {where}, "
        f"{format_size(sizes.output_bytes)} of files, the longest "
        f"{format_size(max(map(max, sizes.files)))}\n"
        f"{cluster.cores} cores and {cluster.read * 8 / 1e9:g} Gbit/s per node, "
        f"{format_size(int(cluster.storage))}/s of shared storage; "
        f"{1000 * costs.task.core:.1f} ms of a core and {1000 * costs.task.driver:.1f} ms of the "
        f"driver per task; {cluster.start:.0f} s to start"
    )


def projection_table(predictions: Mapping[int, Prediction]) -> Table:
    table = Table(title="Projected, in minutes", title_justify="left")
    for heading in ("nodes", "encode"):
        table.add_column(heading, justify="right")
    table.add_column("limited by")
    table.add_column("read back", justify="right")
    table.add_column("limited by")
    for heading in ("in all", "speed-up"):
        table.add_column(heading, justify="right")
    first = next(iter(predictions.values())).seconds
    for nodes, predicted in predictions.items():
        encoding, verifying = predicted.binding
        encode = max(predicted.encode.values()) + predicted.end
        verify = max(predicted.verify.values())
        figures = [f"{seconds / 60:.1f}" for seconds in (encode, verify, predicted.seconds)]
        speed_up = f"{first / predicted.seconds:.1f}"
        table.add_row(str(nodes), figures[0], encoding, figures[1], verifying, figures[2], speed_up)
    return table


def write_report(report: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        options.json.write_text(json.dumps({"machine": cpu_name(), **report}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
