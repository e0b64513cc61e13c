"""Calibration and GPTQ on a GPU: the CPU's results, and seconds per layer of true shape.

``python -m benchmarks.gpu_check`` runs the tiny checkpoints of the tests on both, then one layer of
Mixtral-8x22B's shape, of random weights, on the GPU: 16 chunks of 512 tokens, once for an
importance matrix and once for GPTQ at 4 bits. It takes at most 8 minutes on a GPU of a data centre.
The status is 1 if the two disagree, and 2 without a GPU: then nothing was checked.

Beside PyTorch, transformers and what these bring it needs msgspec and sentencepiece alone: no
llama.cpp, no numba, no network. What a machine lacks can be carried there in a folder::

    pip install --no-deps --target FOLDER msgspec sentencepiece
    PYTHONPATH=FOLDER python -m benchmarks.gpu_check
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.calibration.lockstep.forward import LockstepForward
    from quantkit.calibration.lockstep.visitors import Visitors
    from quantkit.calibration.quantizer import Quantizer
    from quantkit.encodings.gptq import Rounded

TINY = Path(__file__).resolve().parents[1] / "tests/checkpoints"
MODELS = ("tiny-mixtral", "tiny-mistral")
# Two kinds of processor add up in another order: last bits differ, and with them, seldom, a
# router's choice between two experts that are as good.
MOST_OFF_SUMS = 1e-3
MOST_OFF_COUNTS = 0.01
MOST_OFF_ERROR = 0.005


def main() -> int:
    options = parse_options()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here that this PyTorch can use: nothing was checked.")
        return 2
    name = torch.cuda.get_device_name() if options.device == "cuda" else "the CPU, twice"
    print(f"{name}, PyTorch {torch.__version__}")
    good = True
    for model in options.models:
        good &= compare(model, options.device)
    if options.experts:
        time_layers(options)
    print("The results agree." if good else "THE RESULTS DIFFER.")
    return 0 if good else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="to be checked")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--experts", type=int, default=8, help="of the true shape; 0 for no layer")
    parser.add_argument("--chunks", type=int, default=16, help="of 512 tokens, for the true shape")
    parser.add_argument("--folder", help="for the layer's 5 GB")
    return parser.parse_args()


def compare(model: str, device: str) -> bool:
    """Whether a model gives on a device what it gives on the CPU."""
    sums, counts = zip(*(squares(TINY / model, where) for where in ("cpu", device)), strict=True)
    off_sums = largest(lambda name: sums[1][name] / sums[0][name] - 1, sums[0])
    off_counts = largest(lambda name: counts[1][name] / max(counts[0][name], 1) - 1, counts[0])
    errors = [rounding_errors(TINY / model, where) for where in ("cpu", device)]
    off_error = sum(errors[1].values()) / sum(errors[0].values()) - 1
    print(
        f"{model}: sums of squares differ by {off_sums:.1e} at most, counts by {off_counts:.1e}, "
        f"GPTQ's error by {off_error:+.1e}"
    )
    is_near = off_sums < MOST_OFF_SUMS and off_counts < MOST_OFF_COUNTS
    return is_near and abs(off_error) < MOST_OFF_ERROR


def largest(difference: Callable[[str], float], names: Mapping[str, float]) -> float:
    return max(abs(difference(name)) for name in names)


def squares(folder: Path, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """What the matrices of each parameter see on random tokens: sums of squares, tokens."""
    from quantkit.calibration.lockstep.squares import Squares
    from quantkit.calibration.lockstep.visitors import Visitors

    forward = opened(folder, device)
    watcher = Squares(forward.n_matrices)
    run_over(forward, Visitors(watcher=watcher), 4, 256)
    taken = watcher.take()
    return (
        {name: float(seen.squares.sum()) for name, seen in taken.items()},
        {name: float(seen.counts.max()) for name, seen in taken.items()},
    )


def rounding_errors(folder: Path, device: str) -> dict[str, float]:
    """By parameter, how far GPTQ's matrices are from the original, in squares."""
    from quantkit.calibration.lockstep.visitors import Visitors

    forward = opened(folder, device)
    found: dict[str, float] = {}

    def keep(parameter: str, expert: int | None, _rows: slice, rounded: "Rounded") -> None:
        if expert is None:
            matrix = forward.parameters.load([parameter])[parameter]
        else:
            matrix = forward.expert(parameter, expert)
        error = float((rounded.dequantize() - matrix).square().sum())
        found[parameter] = found.get(parameter, 0) + error

    run_over(forward, Visitors(replacer=quantizer(forward, keep)), 4, 256)
    return found


def time_layers(options: argparse.Namespace) -> None:
    """Say what one layer of true shape takes."""
    import torch

    from quantkit.calibration.lockstep.squares import Squares
    from quantkit.calibration.lockstep.visitors import Visitors
    from tests.large_checkpoints import MIXTRAL_8X22B, large_checkpoint

    with TemporaryDirectory(prefix="quantkit-gpu-", dir=options.folder) as temporary:
        folder = large_checkpoint(
            Path(temporary) / "model",
            num_hidden_layers=1,
            num_local_experts=options.experts,
            max_position_embeddings=4096,
            **MIXTRAL_8X22B,
        )
        forward = opened(folder, options.device)
        visitors = {
            "importance matrix": Visitors(watcher=Squares(forward.n_matrices)),
            "GPTQ, 4 bits": Visitors(replacer=quantizer(forward, lambda *_: None)),
        }
        for job, who in visitors.items():
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            run_over(forward, who, options.chunks, 512)
            peak = ""
            if options.device == "cuda":
                torch.cuda.synchronize()
                peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU at most"
            seconds = time.perf_counter() - started
            print(
                f"{job}: {seconds:.0f} s for a layer of Mixtral-8x22B's shape with "
                f"{options.experts} experts{peak}; its 56 take {56 * seconds / 3600:.1f} h"
            )


def opened(folder: Path, device: str) -> "LockstepForward":
    import torch

    from quantkit.calibration.lockstep.forward import LockstepForward
    from quantkit.checkpoint.open import find_source, open_stored

    source = find_source(str(folder))
    assert isinstance(source, Path)
    return LockstepForward(open_stored(source), torch.device(device))


def quantizer(
    forward: "LockstepForward", keep: "Callable[[str, int | None, slice, Rounded], None]"
) -> "Quantizer":
    from quantkit.calibration.quantizer import Quantizer, Recipe
    from quantkit.encodings.gptq import Grid

    return Quantizer(Recipe(Grid(4, 128)), forward.device, forward.linears, keep)


def run_over(forward: "LockstepForward", visitors: "Visitors", chunks: int, context: int) -> None:
    """Run a model over random tokens, up to the last layer."""
    import numpy as np

    from quantkit.calibration.lockstep.run import run
    from quantkit.calibration.lockstep.states import States

    vocabulary = int(forward.model.config.vocab_size)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (chunks, context))
    states = States(Path(), chunks, forward.device, spill=False, durable=False)
    run(
        forward,
        tokens,
        states,
        None,
        visitors,
        finish_layer=lambda _layer, _routing: states.turn_over(),
    )


if __name__ == "__main__":
    sys.exit(main())
