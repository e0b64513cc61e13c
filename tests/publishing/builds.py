"""A build to publish: two quants of tiny-mixtral, smoke-tested, made once and copied."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.building.artifact import Check
from quantkit.verification.smoke import smoke
from tests.building.builds import build
from tests.parity.cases import TRAINED

SOURCE = TRAINED / "tiny-mixtral"
Q4 = "Tiny-Mixtral-8x2.1M-Q4_K_M"
Q2 = "Tiny-Mixtral-8x2.1M-Q2_K"
REPO = "someone/Tiny-Mixtral-GGUF"


def check(path: Path) -> Check:
    result = smoke(path, threads=1)
    return Check(result.ok, result.verdict, asdict(result))


def make(folder: Path) -> Path:
    build(SOURCE, folder, "q4_k_m", "q2_k", jobs=1, check=check)
    return folder


def copy(folder: Path, to: Path) -> Path:
    """The build in a folder of its own; files that a test changes are copies."""
    return Path(shutil.copytree(folder, to))


def comparison(folder: Path) -> dict[str, object]:
    """What quantkit compare --json prints, with figures made by hand."""
    measures = {
        "n_tokens": 1020, "ppl": 28.5, "ppl_pm": 0.5, "ppl_reference": 28.0,
        "ppl_reference_pm": 0.5, "ppl_ratio": 1.0179, "ppl_ratio_pm": 0.001, "kld": 0.01234,
        "kld_pm": 0.00012, "kld_percentiles": [0.001] * 5, "kld_max": 0.1, "same_top": 0.9,
        "same_top_pm": 0.01, "rms_dp": 0.01, "rms_dp_pm": 0.001, "mean_dp": 0.0,
    }  # fmt: skip
    rows = [
        {
            "name": f"{name}.gguf", "file": "", "quant": quant, "run": "as it is", "speed": None,
            "bytes": (folder / f"{name}.gguf").stat().st_size, "is_reference": False,
            "measures": measures, "verdict": {"ok": True, "reason": "healthy", "limits": None},
        }
        for name, quant in ((Q4, "q4_k_m"), (Q2, "q2_k"))
    ]  # fmt: skip
    return {
        "reference": "/somewhere/f16.gguf", "text": "a text", "text_sha256": "ab" * 32,
        "context": 512, "windows": 4, "threads": 1, "reference_quant": "f16", "artifacts": rows,
    }  # fmt: skip


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "quantkit.json"
    manifest = json.loads(path.read_text())
    change(manifest["artifacts"])
    path.write_text(json.dumps(manifest))


def damage(file: Path) -> None:
    """Another byte in the middle, the size and time as before."""
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(times.st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
