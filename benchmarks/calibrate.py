"""Peak memory and time of calibration and of GPTQ, at the true layer shape of large models.

``python -m benchmarks.calibrate --layers 1 2`` runs both over 16 chunks of 512 tokens, on random
checkpoints of one and of two layers of Mixtral-8x22B. ``--shape qwen3-235b`` has 128 experts per
layer, 4096 by 1536, and is calibrated alone. ``--beside FOLDER`` does the same with another
checkout of quantkit, by turns, to set an earlier way beside this one::

    git archive COMMIT | tar -x -C FOLDER

Of GPTQ it then prints, too, what each way loses of the first layer's output
(`benchmarks.gptq_error`).

The status is 1 if a peak exceeds its limit (for Mixtral 1.3 times a layer's bf16 bytes, the
activations and one second moment together; 2 GB for 128 experts), or if two layers take more than
one. ``--experts`` makes the layers smaller.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from benchmarks.memory import EXPERTS as MANY_EXPERTS
from quantkit.core.units import format_size
from tests.large_checkpoints import MIXTRAL_8X22B, large_checkpoint
from tests.large_experts import large_experts
from tests.measured import Cost, measure, unwind_on_sigterm

SENSITIVITY = "sensitivity"
MIXTRAL, MANY = "mixtral-8x22b", "qwen3-235b"
LAYERS = {MIXTRAL: 56, MANY: 94}
JOBS = {MIXTRAL: ["calibrate", "gptq-int4"], MANY: ["calibrate"]}
EXPERTS = {MIXTRAL: 8, MANY: MANY_EXPERTS[MANY]["experts"]}
MOST_OF_A_LAYER = 1.3
MOST_OF_MANY = 2 * 10**9
# What the allocator keeps of buffers below 32 MB after a first layer; later layers reuse it.
MOST_GROWTH = 256 * 2**20
HERE = Path(__file__).parents[1]
console = Console(highlight=False)


def main() -> int:
    options = parse_options()
    unwind_on_sigterm()
    jobs = options.jobs or JOBS[options.shape]
    checkouts = [HERE, *([options.beside] if options.beside else [])]
    costs: dict[tuple[str, str], dict[int, Cost]] = {}
    for layers in options.layers:
        with TemporaryDirectory(prefix="quantkit-calibrate-", dir=options.folder) as folder:
            model = make_model(Path(folder) / "model", layers, options)
            for job in jobs:
                for checkout in checkouts:
                    way = "this" if checkout is HERE else str(checkout)
                    cost = run(job, model, Path(folder), checkout, options)
                    costs.setdefault((job, way), {})[layers] = cost
                if job.startswith("gptq") and options.beside:
                    console.print(errors_of(job, model, Path(folder), checkouts))
    limit = peak_limit(options)
    console.print(cost_table(costs, limit, options))
    if options.json:
        figures = {
            f"{job}, {way}": {
                n: [cost.peak_memory, cost.cpu_seconds, cost.wall_seconds]
                for n, cost in by_layers.items()
            }
            for (job, way), by_layers in costs.items()
        }
        options.json.write_text(json.dumps({"limit": limit, **figures}, indent=2))
    good = True
    for (_, way), by_layers in costs.items():
        peaks = [cost.peak_memory for cost in by_layers.values()]
        good &= way != "this" or (max(peaks) < limit and max(peaks) - peaks[0] < MOST_GROWTH)
    return 0 if good else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shape", choices=[MIXTRAL, MANY], default=MIXTRAL)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", nargs="+", help="calibrate, sensitivity, gptq-int4 and the like")
    parser.add_argument("--experts", type=int, help="fewer than the shape has")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--beside", type=Path, help="another checkout of quantkit")
    parser.add_argument("--folder", help="work on this disk; two layers take 15 GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    options.experts = options.experts or EXPERTS[options.shape]
    return options


def make_model(folder: Path, layers: int, options: argparse.Namespace) -> Path:
    if options.shape == MANY:
        shape = {**MANY_EXPERTS[MANY], "experts": options.experts}
        large_experts(folder, layers=layers, **shape)
        return folder
    return large_checkpoint(
        folder,
        num_hidden_layers=layers,
        num_local_experts=options.experts,
        num_experts_per_tok=min(2, options.experts),
        max_position_embeddings=4096,
        **MIXTRAL_8X22B,
    )


def run(job: str, model: Path, folder: Path, checkout: Path, options: argparse.Namespace) -> Cost:
    sizes = ["--chunks", str(options.chunks), "--context", str(options.context)]
    quantkit = [sys.executable, "-P", "-m", "quantkit"]
    wish: list[str | Path] = [job, model, "-o", folder / "imatrix.gguf", "--overwrite"]
    if job == SENSITIVITY:
        return measure([sys.executable, "-m", "benchmarks.sensitivity", model, *sizes])
    if job != "calibrate":
        out = folder / f"out-{checkout.name}"
        wish = ["build", model, "-q", job, "-o", out, "--no-smoke"]
    with patch.dict(os.environ, {"PYTHONPATH": str(checkout)}):
        return measure([*quantkit, *wish, *sizes])


def errors_of(job: str, model: Path, folder: Path, checkouts: list[Path]) -> str:
    """A line: what each checkout's GPTQ loses of the first layer."""
    artifacts = [
        next(path for path in sorted((folder / f"out-{checkout.name}").iterdir()) if path.is_dir())
        for checkout in checkouts
    ]
    cost = measure([sys.executable, "-m", "benchmarks.gptq_error", model, *artifacts])
    errors = list(json.loads(cost.output.splitlines()[-1]).values())
    ratios = [f"{error:.6g} ({error / errors[-1]:.4f})" for error in errors]
    return f"{job}, error of the first layer's output: " + ", ".join(ratios)


def layer_weights(experts: int) -> int:
    """Of Mixtral-8x22B."""
    hidden: int = MIXTRAL_8X22B["hidden_size"]
    wide: int = MIXTRAL_8X22B["intermediate_size"]
    key_values: int = hidden // 48 * MIXTRAL_8X22B["num_key_value_heads"]
    return hidden * (2 * hidden + 2 * key_values) + experts * 3 * hidden * wide


def peak_limit(options: argparse.Namespace) -> int:
    """What the whole layer may take. The activations are held twice: as read and as left.

    Experts are done one after another, so a layer with fewer takes as much.
    """
    if options.shape == MANY:
        return MOST_OF_MANY
    tokens = options.chunks * options.context
    activations: int = 2 * tokens * MIXTRAL_8X22B["hidden_size"] * 4
    moment: int = MIXTRAL_8X22B["intermediate_size"] ** 2 * 4
    return int(MOST_OF_A_LAYER * 2 * layer_weights(EXPERTS[MIXTRAL])) + activations + moment


def cost_table(
    costs: dict[tuple[str, str], dict[int, Cost]], limit: int, options: argparse.Namespace
) -> Table:
    whole = LAYERS[options.shape]
    table = Table(
        title=f"{options.shape}: layers of {options.experts} experts, "
        f"{options.chunks} x {options.context} tokens; limit {format_size(limit)}",
        title_justify="left",
    )
    headings = (
        *("job", "checkout", "layers", "peak memory", "processor seconds"),
        *("wall seconds", "per layer", f"{whole} layers"),
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for (job, way), by_layers in costs.items():
        for layers, cost in by_layers.items():
            each = cost.wall_seconds / layers
            table.add_row(
                job,
                way,
                str(layers),
                format_size(cost.peak_memory),
                f"{cost.cpu_seconds:.0f}",
                f"{cost.wall_seconds:.0f}",
                f"{each:.0f}",
                f"{each * whole / 3600:.1f} h",
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
