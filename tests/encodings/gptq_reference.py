"""What auto-gptq's own solver makes of `random_layers`: writes gptq_reference.json beside this.

Run once in the environment of ``vendor/auto-gptq/constraints.txt``, from the repository:
``PYTHONPATH=. ENVIRONMENT/bin/python tests/encodings/gptq_reference.py``. Scales are left in
float32, where the format would round them to float16. Act-order comes with static groups, which
auto-gptq wants a group size for.
"""

import json
from pathlib import Path
from typing import Any

from tests.encodings.random_layers import Layer, output_error, random_layers

RESULT = Path(__file__).with_suffix(".json")


def solve(layer: Layer, search: bool) -> float:
    import torch
    from auto_gptq.quantization.gptq import GPTQ

    torch.cuda.synchronize = lambda *_: None  # it waits for a GPU
    linear = torch.nn.Linear(layer.weight.shape[1], layer.weight.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(layer.weight.copy())
    solver = GPTQ(linear)
    solver.quantizer.configure(layer.bits, perchannel=True, sym=layer.symmetric, mse=search)
    solver.H = torch.from_numpy(layer.moment.copy())
    solver.nsamples = 1
    columns = layer.weight.shape[1]
    grouped = layer.act_order and layer.group_size == -1
    solver.fasterquant(
        percdamp=0.01,
        group_size=columns if grouped else layer.group_size,
        actorder=layer.act_order,
        static_groups=layer.act_order,
    )
    return output_error(layer.weight, linear.weight.data.numpy(), layer.moment)


def main() -> None:
    rows: list[dict[str, Any]] = [
        {**layer.settings, "error": solve(layer, False), "error_with_mse": solve(layer, True)}
        for layer in random_layers()
    ]
    RESULT.write_text(json.dumps({"auto_gptq": "0.7.1", "layers": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
