"""Whether the conversion is right: a checkpoint in transformers against its f32 GGUF in llama.cpp.

Quantization plays no part: both compute with the same float32 weights, so that logits differ by
rounding alone, unless names, permutations, norms, the rotation or the tokenizer's BOS are wrong.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.names import PICKLED
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CompareError
from quantkit.core.packages import why_missing
from quantkit.core.writing import write_file
from quantkit.verify.compare import default_text
from quantkit.verify.llama import run_worker
from quantkit.verify.machine import usable_cores
from quantkit.verify.smoke import time_limit
from quantkit.verify.subjects import build_reference

LIMIT = 2e-3  # logits; models with larger ones need a larger limit
_SECONDS = 600


@dataclass(frozen=True, slots=True)
class ConversionCheck:
    """The largest absolute difference of any logit, and how many were compared."""

    largest: float
    n_positions: int
    n_vocab: int
    transformers: str

    def as_numbers(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def against_transformers(
    checkpoint: Path,
    *,
    gguf: Path | None = None,
    text: Path | None = None,
    windows: int = 2,
    context: int = 512,
    threads: int | None = None,
) -> ConversionCheck:
    """Compare all logits of the first windows of a text, on the same tokens.

    Args:
        checkpoint: a Hugging Face folder. No code of it is run.
        gguf: its f32 GGUF; by default it is built for the occasion.
        text: a UTF-8 file; by default ``default_text``.
        windows: how many windows of the text.
        context: tokens per window.
        threads: for both; by default the cores this process may use.

    Raises:
        CheckpointError, SafetensorsError: the checkpoint cannot be read.
        CompareError: torch or transformers is missing, or llama.cpp gives no logits.

    """
    try:
        import torch
        import transformers
    except ImportError as error:
        why = why_missing(str(error.name), "transformers", "--against-transformers")
        raise CompareError(why) from None
    threads = threads or usable_cores()
    # Opened here, weights of torch.save are known to ask for nothing before torch.load sees them.
    opened = open_checkpoint(checkpoint)
    is_pickled = opened.files[0].suffix == PICKLED
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        if gguf is None:
            gguf = build_reference(opened, Path(folder) / "f32", "f32").gguf
        if text is None:
            text = Path(folder) / "text"
            write_file(text, default_text().encode())
        out = Path(folder) / "logits"
        request = {
            "task": "logits",
            "file": str(gguf.absolute()),
            "text": str(text.absolute()),
            "out": str(out),
            "context": context,
            "windows": windows,
            "threads": threads,
        }
        run = run_worker(request, timeout=_SECONDS + time_limit(gguf.stat().st_size))
        answer = run.result or {"refused": run.failure}
        if "refused" in answer:
            raise CompareError(f"{gguf.name} cannot be evaluated: {answer['refused']}")
        tokens = torch.tensor(answer["tokens"])
        shape = (*tokens.shape, answer["n_vocab"])
        ours = np.memmap(out, np.float32, "r", shape=shape)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                checkpoint,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=not is_pickled,  # torch.load runs weights_only
            ).eval()
            largest = 0.0
            with torch.inference_mode():
                for window, mine in zip(tokens, ours, strict=True):
                    theirs = model(window[None]).logits[0].float().numpy()
                    largest = max(largest, float(np.abs(theirs - mine).max()))
        finally:
            torch.set_num_threads(before)
        n_positions = int(tokens.numel())
        del ours
    return ConversionCheck(largest, n_positions, shape[-1], transformers.__version__)
