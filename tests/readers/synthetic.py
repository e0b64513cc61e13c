"""GPTQ folders of random levels: the same bytes on every machine, as no calibration gives them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.calibration.settings import find_device
from quantkit.checkpoint.open import open_stored
from quantkit.families import describe, is_known
from quantkit.families.model import Model
from quantkit.formats.floats import Plain
from quantkit.formats.gptq.packing import pack
from quantkit.formats.gptq.plan import GptqOptions, lay_out_gptq
from quantkit.formats.gptq.stored import PARTS
from quantkit.planning.quants import find_quants
from tests.published import model_of
from tests.safetensors_writer import to_bf16

TOKENS = np.array([[1, 5, 9, 33, 200, 77, 301, 12, 90, 5, 17, 440, 3, 88]], np.int64)


def synthetic_folder(name: str, work: Path, quant: str = "gptq-int4", **changes: Any) -> Path:
    """The folder that GPTQ of a small model would be, with random numbers in every tensor."""
    from quantkit.calibration.lockstep.published import publish_model

    model = model_of(name, work, **changes)
    stored = open_stored(model)
    shown: Model
    if is_known(stored.config):
        shown = describe(stored.config, stored.tensors)
    else:
        shown = publish_model(LockstepForward(stored, find_device("cpu")), stored)
    (wanted,) = find_quants([quant])
    layout = lay_out_gptq(stored, shown, wanted, GptqOptions(), name)
    bits = int(quant[-1])
    rng = np.random.default_rng(11)
    data: dict[str, Any] = {}
    for target in layout.plan.tensors:
        for matrix in target.matrices:
            if isinstance(matrix.codec, Plain):
                data[matrix.name] = _plain(rng, matrix.name, matrix.shape)
                continue
            rows, columns = matrix.shape
            levels = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
            scales = rng.uniform(0.5, 1.5, (rows, columns // 128)) * 0.1 / (1 << bits)
            zeros = np.full(scales.shape, 1 << (bits - 1), np.float32)
            packed = pack(levels, scales.astype(np.float16).astype(np.float32), zeros, bits)
            module = matrix.name.removesuffix("weight")
            for part in PARTS:
                data[module + part] = np.ascontiguousarray(getattr(packed, part))
    out = work / f"{name}-{quant}"
    out.mkdir()
    for small in layout.files:
        (out / small.name).parent.mkdir(exist_ok=True)
        with (out / small.name).open("wb") as file:
            file.write(small.header)
            for tensor in small.tensors:
                values = data[tensor.name]
                file.write(values if isinstance(values, bytes) else values.tobytes())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    return out


def _plain(rng: Any, name: str, shape: tuple[int, ...]) -> bytes:
    """Numbers in bfloat16 that a layer can do something with."""
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.05)
    if "norm" in name:
        values += 1
    raw: bytes = to_bf16(values)[2]
    return raw
