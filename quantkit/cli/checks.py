"""The smoke test as a build uses it: on an artifact under its partial name."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.build.engine import Check

# What an artifact that is no GGUF is exported to for its smoke test.
SMOKE_QUANT = "q8_0"


def check_artifact(path: Path, threads: int, memory: int) -> "Check":
    """Run a GGUF in llama.cpp, a folder through a temporary GGUF of its dequantized weights."""
    return _check_folder(path, threads, memory) if path.is_dir() else _check_gguf(path, threads)


def _check_gguf(path: Path, threads: int) -> "Check":
    from quantkit.build.engine import Check
    from quantkit.verify.smoke import smoke

    result = smoke(path, threads=threads)
    return Check(result.ok, result.verdict, asdict(result))


def _check_folder(folder: Path, threads: int, memory: int) -> "Check":
    from quantkit.build import engine
    from quantkit.build.output import remove, trial_of
    from quantkit.build.work import prepare_export
    from quantkit.plan.quants import find_quants

    temporary = trial_of(folder)
    remove(temporary)
    try:
        work = prepare_export(folder, find_quants([SMOKE_QUANT]))
        (exported,) = engine.build(work, temporary, jobs=threads, max_memory=memory)
        return _check_gguf(exported.path, threads)
    finally:
        remove(temporary)
