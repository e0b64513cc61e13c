"""The figures of ``fit``, as they were before its inside was changed: none of them may move.

``python -m tests.fitting.test_golden`` writes ``golden.json`` anew. A figure changes when
llama.cpp's buffers do (another pinned version), or when what it says is to change.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import quantkit
from tests.parity.cases import TRAINED

GOLDEN = Path(__file__).with_name("golden.json")
BOX = ("--gpu", "24GB", "--ram", "32GB")
CASES: dict[str, tuple[object, ...]] = {
    "experts in RAM": ("mixtral-8x22b", *BOX),
    "two GPUs, four sequences, an 8-bit cache": (
        "mixtral-8x7b", "--gpu", "24GB", "--gpu", "12GB", "--ram", "48GB", "--parallel", "4",
        "--kv-type", "q8_0", "--context", "32768",
    ),
    "unified memory, a long context": (
        "llama-3.1-8b", "--hardware", "apple-32gb", "--context", "131072",
    ),
    "no GPU, no flash attention": ("mistral-7b", "--ram", "16GB", "--no-flash-attn"),
    "shards": (
        "llama-3.1-405b", "--hardware", "2x-a100-80gb", "--shard-size", "40GB", "-q", "q4_k_m,q2_k",
    ),
    "claims": ("mistral-22b", *BOX, "-q", "q4_k_m", "--documented"),
    "a checkpoint": (TRAINED / "tiny-mixtral", "--gpu", "2GB", "--ram", "4GB"),
    "a config": (
        TRAINED / "tiny-mistral" / "config.json", "--gpu", "2GB", "--ram", "4GB", "--context",
        "40000",
    ),
}  # fmt: skip
# What a row says in figures; all else of it is in its digest.
FIGURES = (
    "file_bytes", "mode", "n_gpu_layers", "n_cpu_moe", "memory_total", "spare", "short",
    "longest_context",
)  # fmt: skip
OF_A_ROW = (
    *FIGURES, "quant", "format", "tensor_bytes", "file_bytes_label", "files", "bits_per_weight",
    "needs_imatrix", "needs_allow_requantize", "download_to_build", "disk_to_build", "disk_to_run",
    "fits", "verdict", "layers_per_gpu", "memory", "vram_for_whole", "ram_alone", "command",
)  # fmt: skip
OF_A_MODEL = ("title", "origin", "parameters", "active_parameters", "trained_context")
OF_A_MACHINE = ("title", "gpus", "usable_ram", "free_disk", "unified")


def figures_of(*arguments: object) -> dict[str, Any]:
    """What ``fit --json`` says about memory and sizes, short enough to be kept."""
    outcome = quantkit("fit", *arguments, "--json")
    assert outcome.code in (0, None), outcome
    found = json.loads(outcome.out)
    figures: dict[str, Any] = {
        "model": _some(found["model"], OF_A_MODEL),
        "machine": _some(found["machine"], OF_A_MACHINE),
        "quants": {
            row["quant"]: [*_some(row, FIGURES).values(), _digest(_some(row, OF_A_ROW))]
            for row in found["quants"]
        },
        "other_formats": _digest(found["other_formats"]),
    }
    if "documented" in found:
        figures["documented"] = found["documented"]
    return figures


def _some(document: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: document[key] for key in keys}


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize("case", CASES)
def test_no_figure_has_moved(case: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert figures_of(*CASES[case]) == golden[case]


def _write() -> None:
    lines = []
    for name, arguments in CASES.items():
        found = figures_of(*arguments)
        rows = [f"  {json.dumps(q)}: {json.dumps(row)}" for q, row in found.pop("quants").items()]
        rest = json.dumps(found)[1:-1]
        lines.append(f'{json.dumps(name)}: {{{rest}, "quants": {{\n' + ",\n".join(rows) + "\n}}")
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _write()
