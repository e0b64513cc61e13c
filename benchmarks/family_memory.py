"""Peak memory of `densify --merge linear` and of `import`, at the true width of Mixtral-8x22B.

``python benchmarks/family_memory.py`` writes one layer of random weights as a Hugging Face
checkpoint, and as .pth files in the layout of the first Mixtral release, whose stacked matrices
are the largest tensors there are (1.6 GB), one of them transposed. The status is 1 if a peak
exceeds 1.5 GiB.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.memory import LIMIT
from quantkit.verification.machine import usable_cores
from tests.large_checkpoints import MIXTRAL_8X22B, large_checkpoint
from tests.measured import Cost, measure, unwind_on_sigterm
from tests.random_checkpoints import config_of, write_tokenizer
from tests.raw_releases import params_of

EXPERTS = 8
console = Console(highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=usable_cores())
    parser.add_argument("--folder", help="work on this disk; it takes 14 GB")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    unwind_on_sigterm()
    costs: dict[str, Cost] = {}
    with TemporaryDirectory(prefix="quantkit-memory-", dir=options.folder) as temporary:
        folder = Path(temporary)
        checkpoint = large_checkpoint(
            folder / "checkpoint", "mixtral", num_hidden_layers=1, **MIXTRAL_8X22B
        )
        dense = folder / "dense"
        for name, choice in (
            ("densify --expert", ["--expert", "6"]),
            ("densify --merge linear", ["--merge", "linear"]),
        ):
            command: list[str | Path] = ["densify", checkpoint, "-o", dense, *choice]
            costs[name] = run([*command, "--jobs", str(options.jobs)], folder)
            remove(dense)
        remove(checkpoint)
        raw = stacked_release(folder / "raw")
        imported = folder / "imported"
        costs["import"] = run(["import", raw, "-o", imported, "--jobs", str(options.jobs)], folder)
    console.print(cost_table(costs))
    if options.json:
        figures = {name: [cost.peak_memory, cost.wall_seconds] for name, cost in costs.items()}
        options.json.write_text(json.dumps(figures, indent=2))
    return 0 if max(cost.peak_memory for cost in costs.values()) < LIMIT else 1


def run(command: list[str | Path], folder: Path) -> Cost:
    console.print(f"Running quantkit {command[0]}")
    return measure([sys.executable, "-m", "quantkit", *command], folder)


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def stacked_release(folder: Path) -> Path:
    """One layer in four .pth files: everything but experts, then w1, w2 and w3 of all."""
    console.print("Writing raw weights")
    folder.mkdir()
    config = config_of("mixtral", num_hidden_layers=1, **MIXTRAL_8X22B)
    (folder / "params.json").write_text(json.dumps(params_of(config)))
    write_tokenizer(folder)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    shapes = {
        "tok_embeddings.weight": (config["vocab_size"], hidden),
        "norm.weight": (hidden,),
        "output.weight": (config["vocab_size"], hidden),
        "layers.0.attention_norm.weight": (hidden,),
        "layers.0.ffn_norm.weight": (hidden,),
        "layers.0.attention.wq.weight": (hidden, hidden),
        "layers.0.attention.wk.weight": (kv, hidden),
        "layers.0.attention.wv.weight": (kv, hidden),
        "layers.0.attention.wo.weight": (hidden, hidden),
        "layers.0.block_sparse_moe.gate.weight": (EXPERTS, hidden),
    }
    torch.save(
        {name: weights(shape) for name, shape in shapes.items()}, folder / "consolidated.00.pth"
    )
    for number, part in enumerate(("w1", "w2", "w3"), 1):
        name = f"layers.0.block_sparse_moe.{part}"
        state = {name: weights((EXPERTS * wide, hidden))}
        torch.save(state, folder / f"consolidated.{number:02d}.pth")
    return folder


def weights(shape: tuple[int, ...]) -> Any:
    """Random numbers, one block over and over."""
    block = (
        torch.randn(2**20, generator=torch.Generator().manual_seed(len(shape))) / 20
    ).bfloat16()
    count = torch.Size(shape).numel()
    return block.repeat(-(-count // block.numel()))[:count].view(shape).clone()


def cost_table(costs: dict[str, Cost]) -> Table:
    table = Table()
    table.add_column("command")
    for heading in ("peak memory", "wall", "processor"):
        table.add_column(heading, justify="right")
    for name, cost in costs.items():
        memory = f"{cost.peak_memory / 2**20:.0f} MiB"
        table.add_row(name, memory, f"{cost.wall_seconds:.0f} s", f"{cost.cpu_seconds:.0f} s")
    return table


if __name__ == "__main__":
    sys.exit(main())
