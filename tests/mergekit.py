"""mergekit's linear merge, in an environment of its own."""

from collections.abc import Sequence
from pathlib import Path

from tests.environments import python, run


def linear(
    models: Sequence[Path], weights: Sequence[float], out: Path, *, dtype: str, out_dtype: str
) -> Path:
    """Merge checkpoints; mergekit computes in ``dtype`` and stores ``out_dtype``."""
    config = out.with_suffix(".yaml")
    lines = ["merge_method: linear", f"dtype: {dtype}", f"out_dtype: {out_dtype}", "models:"]
    for model, weight in zip(models, weights, strict=True):
        lines += [f"  - model: {model}", "    parameters:", f"      weight: {weight}"]
    config.write_text("\n".join(lines) + "\n")
    command = python("mergekit").with_name("mergekit-yaml")
    run([command, config, out, "--no-copy-tokenizer", "--num-threads", "1"])
    return out
