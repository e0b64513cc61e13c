"""Peak memory and time of calibration and of GPTQ, at the true layer shape of Mixtral-8x22B.

``python benchmarks/calibrate.py --layers 1 2`` runs both over 16 chunks of 512 tokens, on random
checkpoints of one and of two layers. The status is 1 if a peak exceeds 1.3 times a layer's bf16
bytes, the activations and one second moment together, or if two layers take more than one.
``--experts`` makes the layers smaller: GPTQ of a whole layer takes a processor core half an hour.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks.memory import MIXTRAL_8X22B
from quantkit.core.units import format_size
from tests.large_checkpoints import large_checkpoint
from tests.measured import Cost, measure, unwind_on_sigterm

LAYERS, EXPERTS = 56, 8
MOST_OF_A_LAYER = 1.3
# What the allocator keeps of buffers below 32 MB after a first layer; later layers reuse it.
MOST_GROWTH = 256 * 2**20
console = Console(highlight=False)


def main() -> int:
    options = parse_options()
    unwind_on_sigterm()
    costs: dict[str, dict[int, Cost]] = {job: {} for job in options.jobs}
    for layers in options.layers:
        with TemporaryDirectory(prefix="quantkit-calibrate-", dir=options.folder) as folder:
            model = large_checkpoint(
                Path(folder) / "model",
                num_hidden_layers=layers,
                num_local_experts=options.experts,
                num_experts_per_tok=min(2, options.experts),
                max_position_embeddings=4096,
                **MIXTRAL_8X22B,
            )
            for job in options.jobs:
                costs[job][layers] = run(job, model, Path(folder), options)
    limit = peak_limit(options)
    console.print(cost_table(costs, limit, options))
    if options.json:
        figures = {
            job: {n: [cost.peak_memory, cost.wall_seconds] for n, cost in by_layers.items()}
            for job, by_layers in costs.items()
        }
        options.json.write_text(json.dumps({"limit": limit, **figures}, indent=2))
    good = True
    for by_layers in costs.values():
        peaks = [cost.peak_memory for cost in by_layers.values()]
        good &= max(peaks) < limit and max(peaks) - peaks[0] < MOST_GROWTH
    return 0 if good else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", nargs="+", default=["calibrate", "gptq-int4"])
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--folder", help="work on this disk; two layers take 15 GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def run(job: str, model: Path, folder: Path, options: argparse.Namespace) -> Cost:
    sizes = ["--chunks", str(options.chunks), "--context", str(options.context)]
    quantkit = [sys.executable, "-m", "quantkit"]
    if job == "calibrate":
        return measure(
            [*quantkit, job, model, "-o", folder / "imatrix.gguf", "--overwrite", *sizes]
        )
    wish: list[str | Path] = ["build", model, "-q", job, "-o", folder / "out", "--no-smoke", *sizes]
    return measure([*quantkit, *wish])


def layer_weights(experts: int) -> int:
    hidden: int = MIXTRAL_8X22B["hidden_size"]
    wide: int = MIXTRAL_8X22B["intermediate_size"]
    key_values: int = hidden // 48 * MIXTRAL_8X22B["num_key_value_heads"]
    return hidden * (2 * hidden + 2 * key_values) + experts * 3 * hidden * wide


def peak_limit(options: argparse.Namespace) -> int:
    """What the whole layer may take. The activations are held twice: as read and as left.

    Experts are done one after another, so a layer with fewer takes as much.
    """
    tokens = options.chunks * options.context
    activations: int = 2 * tokens * MIXTRAL_8X22B["hidden_size"] * 4
    moment: int = MIXTRAL_8X22B["intermediate_size"] ** 2 * 4
    return int(MOST_OF_A_LAYER * 2 * layer_weights(EXPERTS)) + activations + moment


def cost_table(costs: dict[str, dict[int, Cost]], limit: int, options: argparse.Namespace) -> Table:
    layer = format_size(2 * layer_weights(options.experts))
    table = Table(
        title=f"A layer: {options.experts} experts, {layer} in bf16; "
        f"{options.chunks} x {options.context} tokens; "
        f"limit for {EXPERTS} experts {format_size(limit)}",
        title_justify="left",
    )
    for heading in ("job", "layers", "peak memory", "seconds", "per layer", f"{LAYERS} layers"):
        table.add_column(heading, justify="left" if heading == "job" else "right")
    for job, by_layers in costs.items():
        for layers, cost in by_layers.items():
            each = cost.wall_seconds / layers
            table.add_row(
                job,
                str(layers),
                format_size(cost.peak_memory),
                f"{cost.wall_seconds:.0f}",
                f"{each:.0f}",
                f"{each * LAYERS / 3600:.1f} h",
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
