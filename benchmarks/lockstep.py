"""The two ways to run a Mixtral layer by layer, side by side: seconds and peak memory.

``python -m benchmarks.lockstep`` scores the same text with the forward that is written out and with
transformers' own in step, in processes of their own, by turns, and says how far the losses are
apart. The sizes of a layer are options; by default it is small enough for a minute.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table

from quantkit.core.units import format_size
from tests.large_checkpoints import large_checkpoint
from tests.measured import measure, unwind_on_sigterm

WAYS = ("written out", "in step")
console = Console(highlight=False)


def main() -> int:
    options = parse_options()
    if options.score:
        score(options)
        return 0
    unwind_on_sigterm()
    table = Table(title=describe(options), title_justify="left")
    for heading in ("way", "round", "peak memory", "processor seconds", "wall seconds"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory(prefix="quantkit-lockstep-", dir=options.folder) as folder:
        large_checkpoint(
            Path(folder) / "model",
            hidden_size=options.hidden,
            intermediate_size=options.wide,
            num_attention_heads=options.hidden // 64,
            num_key_value_heads=options.hidden // 256,
            num_hidden_layers=options.layers,
            num_local_experts=options.experts,
            num_experts_per_tok=2,
            vocab_size=1024,
            max_position_embeddings=4096,
        )
        for number in range(options.rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.lockstep", "--score", way]
                command += ["--folder", folder]
                command += ["--chunks", str(options.chunks), "--context", str(options.context)]
                cost = measure(command)
                seconds[way].append(cost.cpu_seconds)
                table.add_row(
                    way,
                    str(number + 1),
                    format_size(cost.peak_memory),
                    f"{cost.cpu_seconds:.1f}",
                    f"{cost.wall_seconds:.1f}",
                )
        losses = [np.load(Path(folder) / f"{way}.npy") for way in WAYS]
    console.print(table)
    ratio = min(seconds["in step"]) / min(seconds["written out"])
    apart = float(np.abs(losses[0] - losses[1]).max())
    console.print(f"In step takes {ratio:.2f} of the processor time; losses differ by {apart:.1g}.")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--wide", type=int, default=3584)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="work on this disk")
    parser.add_argument("--score", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def describe(options: argparse.Namespace) -> str:
    return (
        f"{options.layers} layers, {options.hidden} wide, {options.experts} experts of "
        f"{options.wide}; {options.chunks} x {options.context} tokens"
    )


def score(options: argparse.Namespace) -> None:
    from quantkit.calibrate import perplexity
    from quantkit.calibrate.calibrate import Settings
    from quantkit.calibrate.lockstep import perplexity as lockstep
    from quantkit.calibrate.text import random_corpus
    from quantkit.checkpoint.open import require_layers

    folder = Path(options.folder)
    checkpoint, model = require_layers(folder / "model", "")
    corpus = random_corpus(model.hparams.vocab_size, options.chunks, options.context)
    if options.score == "in step":
        losses, _ = lockstep.token_losses(checkpoint, corpus, Settings())
    else:
        losses = perplexity.token_losses(checkpoint, model, corpus, Settings())
    np.save(folder / f"{options.score}.npy", losses)


if __name__ == "__main__":
    sys.exit(main())
