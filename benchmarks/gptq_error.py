"""What GPTQ loses of a checkpoint's first layer: what it puts out, beside that of the original.

``python -m benchmarks.gptq_error CHECKPOINT FOLDER...`` streams the layer's matrices past one piece
of the built-in text, in float32, and prints of each GPTQ folder the squared error of the layer's
output over the squared size of what the layer adds to its input.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    errors = layer_errors(options.checkpoint, options.folders, options.tokens)
    json.dump({str(folder): error for folder, error in errors.items()}, sys.stdout)
    print()
    return 0


def layer_errors(checkpoint: Path, folders: list[Path], n_tokens: int) -> dict[Path, float]:
    """The relative squared error of the first layer's output, for each folder."""
    from quantkit.building.heap import share_heap
    from tests.calibration.substitutes import of_artifact, original

    share_heap()
    before, exact = layer_output(checkpoint, n_tokens, original)
    size = (exact - before).square().sum()
    errors = {}
    for folder in folders:
        _, out = layer_output(checkpoint, n_tokens, of_artifact(folder))
        errors[folder] = float((out - exact).square().sum() / size)
    return errors


def layer_output(checkpoint: Path, n_tokens: int, substitute: Any) -> "tuple[Tensor, Tensor]":
    """What goes into the first layer, and what comes out, with these weights for its own."""
    import torch

    from quantkit.calibration.lockstep.run import run
    from quantkit.calibration.lockstep.states import States
    from quantkit.calibration.lockstep.visitors import Visitors
    from quantkit.calibration.text import make_corpus
    from quantkit.checkpoint.open import open_checkpoint
    from tests.calibration.substitutes import Substituting

    tokens = make_corpus(open_checkpoint(checkpoint), [], 1, n_tokens).tokens
    replacer = Substituting(checkpoint, substitute)
    forward = replacer.forward
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: Any, given: Any, result: Any) -> None:
        seen.append((given[0].clone(), result[0] if isinstance(result, tuple) else result))

    forward.modules[forward.layers[0]].register_forward_hook(keep)
    states = States(Path(), 1, torch.device("cpu"), spill=False, durable=False)
    run(forward, tokens, states, lambda _chunk, _scores: None, Visitors(replacer=replacer))
    return seen[-1]


if __name__ == "__main__":
    sys.exit(main())
