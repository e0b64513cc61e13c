"""How sensitive each kind of tensor is in the tiny models: ``[sensitivities]`` of recipes.toml.

``python -m benchmarks.kinds FOLDER`` builds, of each tiny checkpoint, a q8_0 file and one for each
kind of tensor, all of that kind in Q3_K and the rest in Q8_0, and compares them with the
unquantized model. A kind's sensitivity is the divergence that its file has more than the q8_0 file,
over the mean relative squared error of its tensors. It prints the mean over both models. FOLDER
keeps the files, 150 MB.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.search import CHECKPOINTS, TINY
from quantkit.checkpoint.gguf import read_header
from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.plan.names import category_of

ROUNDED = "Q3_K"
# A pattern for each kind, by its name in llama-quantize's rules.
KINDS = {
    "output": r"^output\.",
    "token_embd": r"^token_embd\.",
    "attn_v": r"\.attn_v\.",
    "attn_k": r"\.attn_k\.",
    "attn_q": r"\.attn_q\.",
    "attn_output": r"\.attn_output\.",
    "ffn_up": r"\.ffn_up",
    "ffn_gate": r"\.ffn_gate(_exps)?\.",
    "ffn_down": r"\.ffn_down",
}


def quantkit(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "quantkit", *map(str, words), "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode != 0 and words[0] != "compare":  # which finds most of these unhealthy
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def build(checkpoint: Path, out: Path, quant: str, *options: str) -> Path:
    quantkit("build", checkpoint, "-q", quant, "--no-smoke", "-o", out, *options)
    (file,) = out.glob("*.gguf")
    return file


def errors_in(file: Path) -> dict[str, float]:
    """The mean relative squared error of each kind's tensors, from a file in 16 bits."""
    kind, found = encoding(ROUNDED), defaultdict(list)
    raw = np.memmap(file, np.uint8, "r")
    header = read_header(file)
    for tensor in header.tensors:
        category = category_of(tensor.name)
        if category not in KINDS or len(tensor.shape) < 2 or "gate_inp" in tensor.name:
            continue
        start = header.data_offset + tensor.offset
        weights = ggml.decode(np.array(raw[start : start + tensor.n_bytes]), tensor.encoding)
        rows = weights.reshape(-1, tensor.shape[-1])
        back = ggml.decode(ggml.encode(rows, kind, None).reshape(-1), kind).reshape(rows.shape)
        found[category].append(np.square(rows - back).sum() / np.square(rows).sum())
    return {category: fmean(map(float, errors)) for category, errors in found.items()}


def sensitivities(checkpoint: Path, work: Path) -> dict[str, float]:
    reference = build(checkpoint, work / "bf16", "bf16")
    files = {"": build(checkpoint, work / "q8_0", "q8_0")}
    for kind, pattern in KINDS.items():
        rule = ("--tensor-type", f"{pattern}={ROUNDED.lower()}")
        files[kind] = build(checkpoint, work / kind, "q8_0", *rule)
    compared = quantkit("compare", *files.values(), "--reference", reference, "--chunks", "28")
    measured = {found["file"]: found["measures"]["kld"] for found in compared["artifacts"]}
    kld = {kind: measured[str(file)] for kind, file in files.items()}
    errors = errors_in(reference)
    return {kind: (kld[kind] - kld[""]) / errors[kind] for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = [sensitivities(CHECKPOINTS / name, folder / name) for name in TINY]
    print("# " + ", ".join(TINY))
    for kind in KINDS:
        each = [one[kind] for one in found]
        print(f"{kind} = {fmean(each):.2g}  # {', '.join(f'{s:.3g}' for s in each)}")


if __name__ == "__main__":
    main()
