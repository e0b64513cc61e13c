"""Quants of a mixture, side by side: the usual way and ``quantkit build``.

``python benchmarks/build.py`` makes a checkpoint with random weights and times both on the same
cores, in turn, for six quants; ``--set publish`` for a publisher's 24. They must leave the same
bytes, or the status is 1. ``--beside FOLDER`` sets another checkout of quantkit beside this one
instead::

    git archive COMMIT | tar -x -C FOLDER
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.random_imatrix import imatrix_for
from benchmarks.unit_costs import cost_tables, measure_unit_costs
from quantkit.building.work import prepare
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.units import format_size
from quantkit.planning.quants import find_quants, known_groups
from quantkit.verification.machine import cpu_name, usable_cores
from tests.large_checkpoints import large_checkpoint
from tests.large_experts import large_experts
from tests.measured import Cost, measure, unwind_on_sigterm

HERE = Path(__file__).resolve().parent
QUANTS = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
USUAL, QUANTKIT = "usual way", "quantkit build"
SHARE_SHOWN = 0.01  # of a kind of thread's time
console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contestant: what it cost, and the sha256 of what it made, by quant.

    ``load`` is the machine's load average over the minute before.
    """

    contestant: str
    load: float
    cost: Cost
    sha256: Mapping[str, str]


def main() -> int:
    options = parse_options()
    unwind_on_sigterm()
    # Every process below inherits this: neither contestant can use more cores than the other.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.set:
        options.quants = known_groups()[options.set]
    with working_folder(options.folder) as folder:
        checkpoint = make_checkpoint(folder / "checkpoint", options)
        quants = find_quants(options.quants)
        options.imatrix = imatrix_for(checkpoint, quants, folder / "imatrix.gguf")
        if options.kernel == "fast":
            compile_kernels(checkpoint, options)
        source_bytes = sum(read_through(file) for file in checkpoint.glob("*.safetensors"))
        contestants = {USUAL: usual_way, QUANTKIT: quantkit_build}
        if options.beside:
            other = partial(quantkit_build, checkout=options.beside.resolve())
            contestants = {str(options.beside): other, QUANTKIT: quantkit_build}
            # Each compiles its kernels, which it does once on a machine.
            run(str(options.beside), other, checkpoint, folder / "out", options)
        runs = [
            run(name, command, checkpoint, folder / "out", options)
            for _ in range(options.rounds)
            for name, command in contestants.items()
        ]
        profile = profile_quantkit(checkpoint, folder, options) if options.profile else {}
        costs = None
        if options.units:
            costs = measure_unit_costs(
                checkpoint,
                options.quants,
                folder,
                options.units,
                options.threads,
                imatrix=options.imatrix,
            )
    identical = all(run.sha256 == runs[0].sha256 for run in runs)
    report = {
        "machine": cpu_name(),
        "threads": options.threads,
        "source_bytes": source_bytes,
        "quants": options.quants,
        "imatrix": options.imatrix is not None,
        "identical": identical,
        "runs": [asdict(run) for run in runs],
        "profile": profile,
        "unit_costs": asdict(costs) if costs else None,
    }
    console.print(
        f"{cpu_name()}, {options.threads} threads; {format_size(source_bytes)} of bfloat16 "
        f"into {', '.join(options.quants)}"
        + (", with an importance matrix" if options.imatrix else "")
    )
    console.print(cost_table(runs))
    if not options.beside:
        console.print(steps_table([run for run in runs if run.contestant == USUAL]))
    if profile:
        console.print(profile_table(profile))
    for table in cost_tables(costs) if costs else ():
        console.print(table)
    console.print(
        f"All {len(options.quants)} outputs are the same bytes in {len(runs)} runs."
        if identical
        else "[bold red]The outputs differ.[/]"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    return 0 if identical else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="work here; a checkpoint left here is reused")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--quants", nargs="+", default=list(QUANTS))
    chosen.add_argument("--set", choices=[*known_groups()], help="the quants of a set instead")
    parser.add_argument("--kernel", default="fast", help="quantkit's")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contestant, in turn")
    parser.add_argument(
        "--profile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="build once more and sample where quantkit's threads are",
    )
    parser.add_argument(
        "--units", type=int, default=5, help="measure the steps of a unit on so many; 0: of none"
    )
    parser.add_argument("--beside", type=Path, help="another checkout, instead of the usual way")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    add_checkpoint_options(parser)
    return parser.parse_args()


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """What ``make_checkpoint`` wants to know."""
    parser.add_argument(
        "--family",
        choices=["mixtral", "qwen3_moe"],
        default="mixtral",
        help="qwen3_moe: 128 experts of Qwen3-30B's width in one layer, 0.7 G parameters, which "
        "llama.cpp's converter describes; of the sizes only --seed counts",
    )
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 256")
    parser.add_argument("--ffn", type=int, default=5632, help="a multiple of 256")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)


@contextmanager
def working_folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
    else:
        with TemporaryDirectory(prefix="quantkit-benchmark-") as folder:
            yield Path(folder)


def make_checkpoint(folder: Path, options: argparse.Namespace) -> Path:
    if not folder.exists() and options.family == "qwen3_moe":
        console.print(f"Writing a checkpoint into {folder}")
        sizes: dict[str, Any] = {
            "hidden": 2048,
            "width": 768,
            "experts": 128,
            "heads": 32,
            "kv_heads": 4,
        }
        large_experts(folder, vocab=32000, shard_size=500 * 10**6, seed=options.seed, **sizes)
    elif not folder.exists():
        console.print(f"Writing a checkpoint into {folder}")
        large_checkpoint(
            folder,
            shard_size=500 * 10**6,
            seed=options.seed,
            hidden_size=options.hidden,
            intermediate_size=options.ffn,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            num_key_value_heads=options.hidden // 256,
            vocab_size=options.vocab,
        )
    return folder


def compile_kernels(checkpoint: Path, options: argparse.Namespace) -> None:
    """Compile what quantkit needs, which it does once on a machine."""
    matrix = load_imatrix(options.imatrix) if options.imatrix else None
    work = prepare(checkpoint, find_quants(options.quants), imatrix=matrix)
    wanted = {
        (tensor.encoding, matrix is not None and matrix.columns_of(tensor.target) is not None)
        for layout in work.layouts
        for tensor in layout.plan.tensors
    }
    dtypes = {tensor.dtype for tensor in work.checkpoint.tensors.values()}
    work.kernel.prepare(wanted, dtypes, console.print)


Command = Callable[[Path, Path, argparse.Namespace], Sequence[str | Path]]


def usual_way(checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str | Path]:
    script = HERE / "usual_way.py"
    matrix = options.imatrix or ""
    return [sys.executable, script, checkpoint, out, str(options.threads), matrix, *options.quants]


def quantkit_build(
    checkpoint: Path, out: Path, options: argparse.Namespace, checkout: Path = HERE.parent
) -> list[str | Path]:
    quantkit = ["env", f"PYTHONPATH={checkout}", sys.executable, "-P", "-m", "quantkit"]
    return [*quantkit, *build_arguments(checkpoint, out, options)]


def build_arguments(checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str | Path]:
    quants = [word for quant in options.quants for word in ("-q", quant)]
    jobs = ["--jobs", str(options.threads)]
    how: list[str | Path] = ["--no-smoke"]
    if options.kernel == "ggml":
        how += ["--kernel", "ggml"]
    if options.imatrix:
        how += ["--imatrix", options.imatrix]
    return ["build", checkpoint, *quants, "-o", out, *jobs, *how]


def run(
    name: str, command: Command, checkpoint: Path, out: Path, options: argparse.Namespace
) -> Run:
    """Run a contestant with the source in the page cache and nothing waiting for the disk."""
    for file in checkpoint.glob("*.safetensors"):
        read_through(file)
    os.sync()
    load = os.getloadavg()[0]
    console.print(f"Running the {name} (load average {load:.1f})")
    out.mkdir()
    try:
        cost = measure(command(checkpoint, out, options), out)
        outputs = {quant: find_output(out, quant) for quant in options.quants}
        return Run(name, load, cost, {quant: sha256(file) for quant, file in outputs.items()})
    finally:
        shutil.rmtree(out)


def find_output(out: Path, quant: str) -> Path:
    [file] = [*out.glob(f"{quant}.gguf"), *out.glob(f"*-{quant.upper()}.gguf")]
    return file


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_through(file: Path) -> int:
    """Read a file to its end; its size."""
    with file.open("rb", buffering=0) as stream:
        while stream.read(8 * 2**20):
            pass
        return stream.tell()


def profile_quantkit(
    checkpoint: Path, folder: Path, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Seconds by thread and function of one more build."""
    report, out = folder / "profile.json", folder / "out"
    arguments = build_arguments(checkpoint, out, options)
    measure([sys.executable, HERE / "sampled.py", report, *arguments])
    shutil.rmtree(out)
    seconds: dict[str, dict[str, float]] = json.loads(report.read_text())
    return seconds


def cost_table(runs: Sequence[Run]) -> Table:
    """Medians over the rounds, and the other contestant's over quantkit's."""
    other = runs[0].contestant
    table = Table(title=f"Median of {len(runs) // 2}", title_justify="left")
    table.add_column("")
    for heading in (other, QUANTKIT, "ratio"):
        table.add_column(heading, justify="right")

    def add(heading: str, attribute: str, show: Callable[[Any], str]) -> None:
        theirs, ours = (
            median(getattr(run.cost, attribute) for run in runs if run.contestant == name)
            for name in (other, QUANTKIT)
        )
        table.add_row(heading, show(theirs), show(ours), f"{theirs / ours:.2f}")

    add("wall", "wall_seconds", "{:.1f} s".format)
    add("processor", "cpu_seconds", "{:.1f} s".format)
    add("peak disk", "peak_disk", lambda n: format_size(int(n)))
    add("peak memory, largest process", "peak_memory", lambda n: format_size(int(n)))
    add("peak memory, all together", "peak_together", lambda n: format_size(int(n)))
    return table


def steps_table(runs: Sequence[Run]) -> Table:
    table = Table("", "wall", title=f"Steps of the {USUAL}", title_justify="left")
    seconds = [json.loads(run.cost.output) for run in runs]
    for step in seconds[0]:
        table.add_row(step, f"{median(s[step] for s in seconds):.1f} s")
    return table


def profile_table(profile: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="Where quantkit's threads were, waiting included", title_justify="left")
    for heading in ("threads", "function", "seconds", "share"):
        table.add_column(heading, justify="right" if heading in ("seconds", "share") else "left")
    for threads, functions in profile.items():
        total = sum(functions.values())
        for function, seconds in sorted(functions.items(), key=lambda item: -item[1]):
            if seconds > SHARE_SHOWN * total:
                table.add_row(threads, function, f"{seconds:.1f}", f"{seconds / total:.0%}")
    return table


if __name__ == "__main__":
    sys.exit(main())
