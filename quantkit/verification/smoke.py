"""The smoke test: an artifact must load, compute and generate in llama.cpp."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.names import shard_names
from quantkit.core.errors import GGUFError, NativeError
from quantkit.core.files import open_file
from quantkit.verification.llama import Run, run_worker
from quantkit.verification.machine import usable_cores
from quantkit.verification.specimen import write_specimen
from quantkit.verification.tokens import ExpectedTokens

N_TOKENS = 32
# Of a model that loads, computes and generates, whose own tokenizer could not be asked.
NOT_COMPARED = "ran, tokens not compared"
_BASE_SECONDS = 60
_BYTES_PER_SECOND = 50_000_000  # a slow disk; all of the file is read at least once
_SPECIMEN_SECONDS = 60
_LOG_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """How a smoke test ended.

    ``verdict`` is ``passed``, `NOT_COMPARED` or one sentence on what is wrong;
    ``tokens_per_second`` is the speed of generation, ``text`` what was generated, ``details`` what
    else was seen, as JSON values.
    """

    ok: bool
    verdict: str
    tokens_per_second: float | None
    text: str | None
    load_seconds: float | None
    details: dict[str, Any]


def smoke(
    artifact: Path,
    *,
    timeout: float | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    expected: Mapping[str, tuple[int, str]] | None = None,
    tokens: ExpectedTokens | None = None,
) -> SmokeResult:
    """Load a GGUF artifact in llama.cpp, check it, generate with it, and judge.

    llama.cpp checks the structure of a header and every scale in the weights. It cannot know
    that a value was another one before, so only ``expected`` finds every damaged byte.

    Args:
        artifact: a ``.gguf`` file, or the first shard of a split one.
        timeout: seconds for everything llama.cpp does; by default it grows with the size.
        threads: threads llama.cpp computes with; by default the cores this process may use.
        gpu_layers: how many layers llama.cpp puts on a GPU.
        expected: bytes and sha256 in hex by file name, as in the manifest. A file that it names and
            that has others fails before llama.cpp starts.
        tokens: what the checkpoint's own tokenizer gives; llama.cpp must give the same.

    Raises:
        GGUFError: the artifact or one of its shards is not there.
        NativeError: llama.cpp is not installed, or does not run on this machine at all.

    """
    files = artifact_files(artifact)
    damage = compare_files(files, expected or {})
    if damage:
        return failed(damage)
    if timeout is None:
        timeout = time_limit(sum(file.stat().st_size for file in files))
    run = _run(
        files,
        extra_buffers=False,
        timeout=timeout,
        threads=threads,
        gpu_layers=gpu_layers,
        tokens=tokens,
    )
    return judge(run, tokens)


def judge(run: Run, tokens: ExpectedTokens | None = None) -> SmokeResult:
    """What a worker found, or why it found nothing.

    Raises:
        NativeError: llama.cpp does not run on this machine at all.

    """
    if run.crashed:
        _check_machine(run)
    if run.failure or run.result is None:
        last_words = run.log[-_LOG_CHARACTERS:]
        return failed(str(run.failure), stage=run.stage, returncode=run.returncode, log=last_words)
    ok, verdict = run.result["verdict"] == "passed", run.result["verdict"]
    if ok and tokens is not None and tokens.lacking:
        verdict = NOT_COMPARED
    return SmokeResult(
        ok=ok,
        verdict=verdict,
        tokens_per_second=run.result.get("tokens_per_second"),
        text=run.result.get("text"),
        load_seconds=run.result.get("load_seconds"),
        details=run.result["details"],
    )


def smoke_specimen(*, extra_buffers: bool) -> str | None:
    """Why llama.cpp cannot run a tiny sound model here, in one sentence, or None if it can.

    Args:
        extra_buffers: whether llama.cpp may use its special CPU weight layouts (AMX, repacking).

    Raises:
        NativeError: llama.cpp is not installed, or its libraries do not load.

    """
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = write_specimen(Path(folder) / "specimen.gguf")
        run = _run([file], extra_buffers=extra_buffers, timeout=_SPECIMEN_SECONDS, threads=None)
    if run.result is None:
        return run.failure
    verdict: str = run.result["verdict"]
    return None if verdict == "passed" else verdict


def time_limit(n_bytes: int) -> float:
    """Seconds that a smoke test of this many bytes may take."""
    return _BASE_SECONDS + n_bytes / _BYTES_PER_SECOND


def _run(
    files: list[Path],
    *,
    extra_buffers: bool,
    timeout: float,
    threads: int | None,
    gpu_layers: int = 0,
    tokens: ExpectedTokens | None = None,
) -> Run:
    request = {
        "task": "smoke",
        "files": [str(file) for file in files],
        "extra_buffers": extra_buffers,
        "threads": threads or usable_cores(),
        "gpu_layers": gpu_layers,
        "n_tokens": N_TOKENS,
        "tokens": tokens and asdict(tokens),
    }
    return run_worker(request, timeout=timeout, gpu=gpu_layers > 0)


def _check_machine(run: Run) -> None:
    """Blame the artifact for a crash only on a machine where llama.cpp runs at all."""
    failure = smoke_specimen(extra_buffers=False)
    if failure:
        raise NativeError(
            f"llama.cpp does not run on this machine, whatever the file ({run.failure} With a "
            f"tiny sound model: {failure}) Run quantkit doctor."
        )


def artifact_files(artifact: Path) -> list[Path]:
    """The file itself, or all shards of a split artifact, as absolute paths."""
    artifact = artifact.absolute()
    files = shard_names(artifact)
    if artifact.is_dir():
        raise GGUFError(
            f"{artifact} is a folder; give its first GGUF, or make one with quantkit export."
        )
    for file in files:
        if not file.is_file():
            raise GGUFError(f"{file} does not exist; build or copy it again.")
    return files


def compare_files(files: list[Path], expected: Mapping[str, tuple[int, str]]) -> str | None:
    """How files differ from their bytes and sha256 by name, in a sentence; None if they do not."""
    for file in files:
        if file.name not in expected:
            continue
        n_bytes, sum_expected = expected[file.name]
        with open_file(file, error=GGUFError, fix="build or copy it again") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != n_bytes:  # which needs no reading of what may be far larger
                return (
                    f"{file.name} is not as it was built: it has {size:,} bytes, the manifest says "
                    f"{n_bytes:,}; build or copy it again."
                )
            sum_found = hashlib.file_digest(stream, "sha256").hexdigest()
        if sum_found != sum_expected.lower():
            return (
                f"{file.name} is not as it was built: its sha256 is {sum_found[:12]}..., the "
                f"manifest says {sum_expected[:12]}...; build or copy it again."
            )
    return None


def failed(verdict: str, **details: Any) -> SmokeResult:
    """The result of a test that was not passed."""
    return SmokeResult(
        ok=False,
        verdict=verdict,
        tokens_per_second=None,
        text=None,
        load_seconds=None,
        details=details,
    )
