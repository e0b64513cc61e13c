"""Artifacts measured against their reference, each in a llama.cpp process of its own."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.documents import read_object
from quantkit.core.errors import CompareError, FileError
from quantkit.core.files import read_text
from quantkit.core.system import user_cache
from quantkit.core.topics import TO_JUDGE, whole_topics
from quantkit.core.writing import write_file
from quantkit.verification.divergence import Measures
from quantkit.verification.embeddings import Cosines
from quantkit.verification.kept import Speed
from quantkit.verification.llama import WORKER, run_worker
from quantkit.verification.machine import usable_cores
from quantkit.verification.quality import Verdict, judge
from quantkit.verification.smoke import artifact_files, time_limit
from quantkit.verification.subjects import Subject, open_subject

_FORM = 1  # of the cache; another number makes old entries useless
_MOST_CACHED = 20 * 10**9
_IN_USE_SECONDS = 24 * 3600
_SECONDS_PER_WINDOW = 5.0
_BYTES_PER_SECOND = 50_000_000  # of the model, per window, on a slow processor

DEFAULT_TEXT = (
    f"Python's own documentation (pydoc topics '{TO_JUDGE[0]}' to '{TO_JUDGE[1]}'); models have "
    "seen it in training and perplexities on it cannot be set beside those on WikiText"
)


@dataclass(frozen=True, slots=True)
class Result:
    """One artifact: its figures, or why there are none. One that embeds has ``cosines`` instead."""

    subject: Subject
    measures: Measures | None
    speed: Speed | None
    verdict: Verdict
    is_reference: bool = False
    cosines: Cosines | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All artifacts against one reference, over one text."""

    reference: Subject
    text: str
    text_sha256: str
    context: int
    windows: int
    threads: int
    results: tuple[Result, ...]
    gpu_layers: int = 0

    @property
    def place(self) -> str:
        """Where llama.cpp computed, in words."""
        return f"with {self.gpu_layers} layers on a GPU" if self.gpu_layers else "on the CPU"

    @property
    def embeds(self) -> bool:
        """Whether embeddings were compared, and no predictions; windows are then texts."""
        return any(result.cosines is not None for result in self.results)

    @property
    def failed(self) -> tuple[Result, ...]:
        """Those that are not healthy."""
        return tuple(result for result in self.results if not result.verdict.ok)

    @property
    def ok(self) -> bool:
        """Whether every artifact is healthy."""
        return not self.failed

    def raise_if_failed(self) -> None:
        """Turn artifacts that failed into an error.

        Raises:
            CompareError: there are such.

        """
        if self.failed:
            count = f"{len(self.failed)} of {len(self.results)}"
            reasons = "; ".join(f"{r.subject.name}: {r.verdict.reason}" for r in self.failed)
            raise CompareError(f"{count} artifacts failed: {reasons}")


def default_text() -> str:
    """The text to measure on where none is given; Python versions word it a little differently."""
    return whole_topics(TO_JUDGE)


def mean_divergence(
    files: Iterable[Path],
    reference: Path,
    *,
    text: Path | None = None,
    context: int = 512,
    windows: int | None = None,
) -> dict[Path, tuple[float, float]]:
    """The mean KL divergence of GGUF files from a reference GGUF, in nats, and its standard error.

    Raises:
        CompareError: one of them cannot be measured.

    """
    paths = list(files)
    comparison = compare(
        [open_subject(path) for path in paths],
        open_subject(reference),
        text=text,
        context=context,
        windows=windows,
    )
    found = {}
    measured = [result for result in comparison.results if not result.is_reference]
    for path, result in zip(paths, measured, strict=True):
        if result.measures is None:
            reason = "It embeds." if result.cosines else result.verdict.reason
            raise CompareError(f"{path.name} cannot be measured: {reason}")
        found[path] = (result.measures.kld, result.measures.kld_pm)
    return found


def compare(
    subjects: Sequence[Subject],
    reference: Subject,
    *,
    text: Path | None = None,
    context: int = 512,
    windows: int | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    timeout: float | None = None,
    cache: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    command: Sequence[str] = WORKER,
) -> Comparison:
    """Measure every subject against the reference, which is run first unless it is cached.

    Args:
        subjects: artifacts, the reference itself among them or not.
        reference: what they are measured against.
        text: a UTF-8 file; by default ``default_text``.
        context: tokens per window.
        windows: how many windows at most; by default all of the text.
        threads: threads llama.cpp computes with; by default the cores this process may use.
        gpu_layers: how many layers llama.cpp puts on a GPU.
        timeout: seconds per artifact; by default it grows with its size and the text's.
        cache: the folder of recorded references; by default in the user's cache folder.
        report: told what comes next.
        command: the worker.

    Raises:
        CompareError: the reference itself cannot be measured, or the text cannot be read.
        NativeError: llama.cpp is not installed, or its libraries do not load.

    """
    threads = threads or usable_cores()
    with _text_file(text) as (file, sha256):
        run = _Runner(file, context, windows, threads, timeout, command, gpu_layers)
        report(f"reference {reference.name}")
        recorded, own = _record(reference, run, sha256, cache or cache_folder())
        results = []
        answer: dict[str, Any] | None
        if reference.gguf not in [subject.gguf for subject in subjects]:
            subjects = [reference, *subjects]
        for subject in subjects:
            is_reference = subject.gguf == reference.gguf
            if is_reference:
                answer, failure = own, None
            else:
                report(subject.name)
                answer, failure = run(subject, "measure", recorded)
            results.append(_result(subject, reference, answer, failure, is_reference=is_reference))
    return Comparison(
        reference=reference,
        text=text.name if text else DEFAULT_TEXT,
        text_sha256=sha256,
        context=context,
        windows=own["windows"],
        threads=threads,
        gpu_layers=gpu_layers,
        results=tuple(results),
    )


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A model's perplexity over a text and its standard error, or why there is none."""

    ppl: float | None
    ppl_pm: float | None
    failure: str | None = None


def perplexities(
    subjects: Sequence[Subject],
    *,
    text: Path | None = None,
    context: int = 512,
    windows: int | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> list[Perplexity]:
    """The perplexity of GGUF files in llama.cpp, with no reference. Arguments as `compare` has.

    Raises:
        CompareError: the text cannot be read.
        NativeError: llama.cpp is not installed, or its libraries do not load.

    """
    found = []
    with _text_file(text) as (file, _):
        run = _Runner(file, context, windows, threads or usable_cores(), timeout, WORKER)
        for subject in subjects:
            report(subject.name)
            answer, failure = run(subject, "perplexity", Path())
            if answer is None:
                found.append(Perplexity(None, None, failure or "llama.cpp gave no result."))
            else:
                found.append(Perplexity(answer["ppl"], answer["ppl_pm"]))
    return found


def _result(
    subject: Subject,
    reference: Subject,
    answer: dict[str, Any] | None,
    failure: str | None,
    *,
    is_reference: bool,
) -> Result:
    if answer is None:
        verdict = Verdict(ok=False, reason=failure or "llama.cpp gave no result.", limits=None)
        return Result(subject, None, None, verdict)
    measures = cosines = None
    if "cosines" in answer:
        cosines = Cosines(**answer["cosines"])
    else:
        figures = answer["measures"]
        measures = Measures(**{**figures, "kld_percentiles": tuple(figures["kld_percentiles"])})
    try:
        verdict = judge(
            subject,
            reference,
            measures,
            cosines,
            is_reference=is_reference,
            translates=answer.get("translates", False),
        )
    except CompareError as error:
        verdict = Verdict(ok=False, reason=str(error), limits=None)
    return Result(subject, measures, Speed(**answer["speed"]), verdict, is_reference, cosines)


@dataclass(frozen=True, slots=True)
class _Runner:
    text: Path
    context: int
    windows: int | None
    threads: int
    timeout: float | None
    command: Sequence[str]
    gpu_layers: int = 0

    def __call__(
        self, subject: Subject, task: str, reference: Path
    ) -> tuple[dict[str, Any] | None, str | None]:
        """What the worker found of a subject, or why it found nothing."""
        request = {
            "task": task,
            "file": str(subject.gguf.absolute()),
            "text": str(self.text.absolute()),
            "reference": str(reference.absolute()),
            "context": self.context,
            "windows": self.windows,
            "threads": self.threads,
            "gpu_layers": self.gpu_layers,
        }
        timeout = self.timeout or self._time_limit(subject.n_bytes)
        run = run_worker(request, timeout=timeout, command=self.command, gpu=self.gpu_layers > 0)
        if run.result is None or run.failure:
            return None, run.failure
        if "refused" in run.result:
            return None, run.result["refused"]
        return run.result, None

    def _time_limit(self, n_bytes: int) -> float:
        # A token is at least two bytes of text, or the text would be odd indeed.
        most = 1 + self.text.stat().st_size // (2 * self.context)
        n = min(most, self.windows or most)
        return time_limit(n_bytes) + n * (_SECONDS_PER_WINDOW + n_bytes / _BYTES_PER_SECOND)


def cache_folder() -> Path:
    """Where recorded references are kept."""
    return user_cache() / "references"


def _record(
    reference: Subject, run: _Runner, text_sha256: str, folder: Path
) -> tuple[Path, dict[str, Any]]:
    """The reference's recorded log-probabilities and what was measured meanwhile."""
    key = _key(reference, run, text_sha256)
    recorded, figures = folder / f"{key}.kld", folder / f"{key}.json"
    if recorded.is_file():
        try:
            modified_ns = recorded.stat().st_mtime_ns
            os.utime(recorded, ns=(time.time_ns(), modified_ns))  # among the last to go
            return recorded, read_object(figures)
        except FileError:
            recorded.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise CompareError(
            f"{folder} cannot hold the reference's log-probabilities: {error.strerror}."
        ) from None
    try:
        with suppress(OSError):
            _make_room(folder)
        answer, failure = run(reference, "record", partial / recorded.name)
        if answer is None:
            raise CompareError(f"The reference {reference.name} cannot be measured: {failure}")
        # The figures first: a recorded file is only good together with them.
        write_file(partial / figures.name, json.dumps(answer).encode())
        (partial / figures.name).replace(figures)
        (partial / recorded.name).replace(recorded)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return recorded, answer


def _make_room(folder: Path) -> None:
    """Delete the references that were not used for longest, where all of them take too much room.

    Another comparison may be reading one, so those of the last day stay.
    """
    files = sorted(folder.glob("*.kld"), key=_used)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total <= _MOST_CACHED or time.time() - _used(file) < _IN_USE_SECONDS:
            return
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)


def _used(file: Path) -> float:
    """When a reference was recorded or last asked for."""
    status = file.stat()
    return max(status.st_atime, status.st_mtime)


def _key(reference: Subject, run: _Runner, text_sha256: str) -> str:
    from importlib.metadata import version

    files = [
        (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        for file in artifact_files(reference.gguf)
    ]
    binding = version("llama-cpp-python")
    everything = [_FORM, files, text_sha256, run.context, run.windows, binding]
    if run.gpu_layers:  # which computes with other rounding
        everything.append(run.gpu_layers)
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:32]


@contextmanager
def _text_file(text: Path | None) -> Iterator[tuple[Path, str]]:
    """The text as a file that the worker can read, and its sha256."""
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        if text is None:
            text = Path(folder) / "text"
            write_file(text, default_text().encode())
        yield text, hashlib.sha256(read_text(text)).hexdigest()
