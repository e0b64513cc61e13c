"""``python in_transformers4.py FOLDER IDS``: what transformers 4 makes of an artifact, as JSON.

It runs in the converter's environment and knows nothing of this package.
"""

import json
import sys

import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt


def main(folder: str, ids: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype="auto"
    )
    quantized = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit | Linear8bitLt)
    ]
    is_mixture = any(name.endswith(".gate") for name, _ in model.named_modules())
    options = {"output_router_logits": True} if is_mixture else {}
    with torch.no_grad():
        output = model(torch.tensor([json.loads(ids)]), **options)
    routers = output.router_logits if is_mixture else ()
    result = {
        "version": transformers.__version__,
        "experts": sum(".experts." in name for name in quantized),
        "others": sum(".experts." not in name for name in quantized),
        "logits": output.logits.float().flatten().tolist(),
        "taken": [layer.float().topk(2).indices.tolist() for layer in routers],
    }
    print("RESULT " + json.dumps(result))  # noqa: T201 - the result


if __name__ == "__main__":
    main(*sys.argv[1:])
