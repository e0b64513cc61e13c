"""Run with the readers' own Python: what one of them makes of a folder, as JSON on standard output.

``python in_their_environment.py READER FOLDER TOKENS``; READER is ``gptqmodel`` or
``transformers``. It knows nothing of quantkit.
"""

import importlib
import json
import logging
import sys
import traceback
from typing import Any

import torch


def load(reader: str, folder: str) -> tuple[Any, list[str]]:
    """The model, and the weights that the reader says are missing."""
    if reader == "gptqmodel":
        gptqmodel: Any = importlib.import_module("gptqmodel")
        backend = gptqmodel.BACKEND.GPTQ_TORCH
        wish = {"device": "cpu", "backend": backend, "dtype": torch.float16}
        # Its layers load as 16 bits only, but compute in the type of their inputs.
        return gptqmodel.GPTQModel.load(folder, **wish).model.float(), []
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", output_loading_info=True
    )
    return model, sorted(report["missing_keys"])


def main() -> None:
    reader, folder, tokens = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    try:
        model, missing = load(reader, folder)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor(json.loads(tokens))).logits.float()
        answer = {
            "logits": logits.tolist(),
            "missing": missing,
            "quantized": sum(hasattr(module, "qweight") for module in model.modules()),
        }
    except Exception:  # noqa: BLE001 - whatever it is, it is told
        answer = {"failed": traceback.format_exc()}
    print(f"\n{json.dumps(answer)}")  # noqa: T201 - it is read


main()
