"""auto-gptq, the GPTQ format's reference reader, in an environment of its own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.environments import python, run

LOGITS = """
import sys
import numpy as np
import torch
from auto_gptq import AutoGPTQForCausalLM
tokens, *folders = sys.argv[1:]
for number, folder in enumerate(folders):
    model = AutoGPTQForCausalLM.from_quantized(
        folder, device="cpu", use_triton=False, disable_exllama=True, disable_exllamav2=True,
        torch_dtype=torch.float32,
    )
    quantized = [m for m in model.modules() if type(m).__name__ == "QuantLinear"]
    assert quantized, "nothing was loaded as quantized"
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(np.load(tokens))).logits
    np.save(f"{tokens}.{number}.npy", logits.float().numpy())
"""


def logits(
    artifacts: Sequence[Path], tokens: NDArray[np.int64], work: Path
) -> list[NDArray[np.float32]]:
    """What auto-gptq computes on the CPU with each: (chunks, context, vocabulary)."""
    file = work / "tokens.npy"
    np.save(file, tokens)
    run([python("auto-gptq"), "-c", LOGITS, file, *artifacts])
    return [np.load(f"{file}.{number}.npy") for number in range(len(artifacts))]
