"""What GPTQ loses of a checkpoint's first layer: what it puts out, beside that of the original.

``python -m benchmarks.gptq_error CHECKPOINT FOLDER...`` runs two chunks of the built-in text
through the layer, in float32 inputs of bfloat16 weights, and prints of each GPTQ folder the squared
error of the layer's output over the squared size of what the layer adds to its input.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibration.text import make_corpus
from quantkit.checkpoint.open import open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    errors = layer_errors(options.checkpoint, options.folders, options.chunks, options.context)
    json.dump({str(folder): error for folder, error in errors.items()}, sys.stdout)
    print()
    return 0


def layer_errors(
    checkpoint: Path, folders: list[Path], chunks: int, context: int
) -> dict[Path, float]:
    """The relative squared error of the first layer's output, for each folder."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantkit.formats.gptq.loading import load

    corpus = make_corpus(open_checkpoint(checkpoint), [], chunks, context)
    tokens = torch.from_numpy(corpus.tokens)

    def through(make: Callable[[], Any]) -> "tuple[Tensor, Tensor]":
        """What goes into the layer, and what comes out; the model is let go."""
        model = make()
        seen: dict[str, Tensor] = {}

        def keep(_: Any, given: Any, result: Any) -> None:
            seen["in"] = given[0].float()
            seen["out"] = (result[0] if isinstance(result, tuple) else result).float()

        model.model.layers[0].register_forward_hook(keep)
        with torch.inference_mode():
            model.model(tokens, use_cache=False)
        return seen["in"], seen["out"]

    before, exact = through(lambda: AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto"))
    size = (exact - before).square().sum()
    return {
        folder: float((through(partial(load, folder))[1] - exact).square().sum() / size)
        for folder in folders
    }


if __name__ == "__main__":
    sys.exit(main())
