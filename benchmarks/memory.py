"""Peak memory of building all quants at once, at the true width of large models.

``python benchmarks/memory.py --layers 1 2`` builds ``ladder`` from random checkpoints of one and of
two layers; ``--quants publish`` a publisher's set, with an importance matrix. The status is 1 if
all processes together exceed ``--limit``, or if more layers take more memory. ``--shape
qwen3-235b`` has layers of 128 experts, ``--shape fp8`` of 256 in FP8 blocks, as wide as
DeepSeek-V3's: llama.cpp's converter describes both, and computes the second one's numbers.
``--job calibrate`` runs such a model over text instead, layer by layer.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.random_imatrix import imatrix_for
from quantkit.core.units import format_size, parse_size
from quantkit.planning.quants import find_quants
from quantkit.verification.machine import usable_cores
from tests.large_checkpoints import MIXTRAL_8X22B, large_checkpoint
from tests.large_experts import large_experts
from tests.measured import Cost, measure, unwind_on_sigterm

# As `large_experts` takes them. The heads make what is beside the experts as large as it is there.
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3-235b": {
        "hidden": 4096, "width": 1536, "experts": 128, "heads": 64, "kv_heads": 4, "vocab": 151936,
    },
    "fp8": {
        "hidden": 7168, "width": 2048, "experts": 256, "heads": 128, "kv_heads": 8, "vocab": 4096,
        "fp8": True,
    },
}  # fmt: skip
LIMIT = 1536 * 2**20
# Between layers only tables grow; threads that meet differently move the peak by about a slab.
MOST_GROWTH = 64 * 2**20
console = Console(highlight=False)


def main() -> int:
    options = parse_options()
    unwind_on_sigterm()
    costs = {}
    for layers in options.layers:
        with TemporaryDirectory(prefix="quantkit-memory-", dir=options.folder) as folder:
            costs[layers] = build(Path(folder), layers, options)
    console.print(cost_table(costs))
    if options.json:
        figures = {
            n: [cost.peak_memory, cost.peak_together, cost.wall_seconds]
            for n, cost in costs.items()
        }
        options.json.write_text(json.dumps(figures, indent=2))
    peaks = [cost.peak_together for cost in costs.values()]
    return 0 if max(peaks) < options.limit and max(peaks) - peaks[0] < MOST_GROWTH else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shape", choices=["mixtral-8x22b", *EXPERTS], default="mixtral-8x22b")
    parser.add_argument("--experts", type=int, help="others than the shape has, for a small disk")
    parser.add_argument("--job", choices=["build", "calibrate"], default="build")
    parser.add_argument("--chunks", type=int, default=16, help="of 512 tokens, for calibrate")
    parser.add_argument("--quants", nargs="+", default=["ladder"])
    parser.add_argument("--jobs", type=int, default=usable_cores())
    parser.add_argument("--max-memory", default="1GiB", help="quantkit's option")
    parser.add_argument("--limit", type=parse_size, default=LIMIT, help="the most memory allowed")
    parser.add_argument("--folder", help="work on this disk; two layers take 37 GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def build(folder: Path, layers: int, options: argparse.Namespace) -> Cost:
    console.print(f"Writing a checkpoint of {layers} layers")
    checkpoint = folder / "checkpoint"
    if options.shape in EXPERTS:
        shape = EXPERTS[options.shape]
        experts = options.experts or shape["experts"]
        large_experts(checkpoint, layers=layers, **{**shape, "experts": experts})
    else:
        fewer = {"num_local_experts": options.experts} if options.experts else {}
        large_checkpoint(checkpoint, num_hidden_layers=layers, **MIXTRAL_8X22B, **fewer)
    if options.job == "calibrate":
        console.print("Calibrating")
        text = ["--chunks", str(options.chunks), "--context", "512"]
        where: list[str | Path] = [checkpoint, "-o", folder / "imatrix.gguf"]
        return measure([sys.executable, "-m", "quantkit", "calibrate", *where, *text], folder)
    console.print("Building")
    quants = [word for quant in options.quants for word in ("-q", quant)]
    limits = ["--jobs", str(options.jobs), "--max-memory", options.max_memory]
    imatrix = imatrix_for(checkpoint, find_quants(options.quants), folder / "imatrix.gguf")
    matrix: list[str | Path] = ["--imatrix", imatrix] if imatrix else []
    command = [sys.executable, "-m", "quantkit", "build", checkpoint, *quants, *limits, *matrix]
    return measure([*command, "-o", folder / "out", "--no-smoke"], folder)


def cost_table(costs: dict[int, Cost]) -> Table:
    table = Table()
    headings = ("layers", "largest process", "all together", "peak disk, source included", "wall")
    for heading in headings:
        table.add_column(heading, justify="right")
    for layers, cost in costs.items():
        memory, together = (
            f"{peak / 2**20:.0f} MiB" for peak in (cost.peak_memory, cost.peak_together)
        )
        disk, wall = format_size(cost.peak_disk), f"{cost.wall_seconds:.0f} s"
        table.add_row(str(layers), memory, together, disk, wall)
    return table


if __name__ == "__main__":
    sys.exit(main())
