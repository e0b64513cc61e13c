"""What llama.cpp itself says that a context takes: KV cache, compute and output buffers.

A GGUF's header alone is enough for that. It is written to a sparse file, which llama.cpp loads
without allocating anything, in a subprocess, and logs the size of each buffer that it would make.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.errors import GGUFError, NativeError, QuantkitError
from quantkit.core.writing import write_file
from quantkit.encodings.encoding import encoding
from quantkit.fit.subject import Hollow, Shape, Subject
from quantkit.verify.llama import run_worker

KV_TYPES = ("f16", "q8_0", "q4_0")
CELLS = 256  # llama.cpp rounds a context up to a multiple of this
LONGEST = 2**24  # tokens of all sequences that are tried: even a dry run has memory for each
_MIB = 2**20
_TIMEOUT = 120


class FitError(QuantkitError):
    """A question about memory that makes no sense, or that llama.cpp would refuse."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the model is to be run.

    ``context`` is what each of ``parallel`` sequences gets, in tokens; ``kv_type`` one of
    ``KV_TYPES``, for keys and values alike.
    """

    context: int
    parallel: int = 1
    kv_type: str = "f16"
    flash_attn: bool = True

    @property
    def cells(self) -> int:
        """The context as llama.cpp makes it, per sequence."""
        return -(-self.context // CELLS) * CELLS


@dataclass(frozen=True, slots=True)
class Probe:
    """The buffers of one context in bytes, as llama.cpp tells them: to a hundredth of a MiB.

    ``gpu_compute`` is the largest compute buffer on one GPU, None where this build of llama.cpp
    has no GPU backend or was not asked.
    """

    cells: int
    kv: int
    compute: int
    output: int
    gpu_compute: int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Buffers as a function of the context, from probes at some contexts, shortest first.

    A compute buffer is the largest of several needs that are each linear in the context, so it is
    convex, and a straight line between two probes is never below it.
    """

    shape: Shape
    settings: Settings
    probes: tuple[Probe, ...]

    def at(self, cells: int) -> Probe:
        """The buffers for a context of ``cells`` per sequence, within the probed range."""
        below = max((p for p in self.probes if p.cells <= cells), key=lambda p: p.cells)
        above = min((p for p in self.probes if p.cells >= cells), key=lambda p: p.cells)
        if below.cells == above.cells:
            return below
        share = (cells - below.cells) / (above.cells - below.cells)

        def between(low: int, high: int) -> int:
            return round(low + share * (high - low))

        gpu = None
        if below.gpu_compute is not None and above.gpu_compute is not None:
            gpu = between(below.gpu_compute, above.gpu_compute)
        exact = kv_bytes(self.shape, self.settings, cells)
        return Probe(
            cells=cells,
            kv=exact if self.kv_is_exact else between(below.kv, above.kv),
            compute=between(below.compute, above.compute),
            output=max(below.output, above.output),
            gpu_compute=gpu,
        )

    @property
    def kv_is_exact(self) -> bool:
        """Whether llama.cpp agrees with ``kv_bytes``; a cache may also be windowed or shared."""
        return all(p.kv == kv_bytes(self.shape, self.settings, p.cells) for p in self.probes)

    @property
    def longest(self) -> int:
        """The longest context that was probed."""
        return max(probe.cells for probe in self.probes)


def kv_bytes(shape: Shape, settings: Settings, cells: int) -> int:
    """Bytes of the KV cache: every layer keeps a key and a value per token and KV head."""
    kind = encoding(settings.kv_type.upper())
    rows = shape.n_kv_heads * shape.key_length, shape.n_kv_heads * shape.value_length
    per_cell = sum(kind.row_bytes(columns) for columns in rows)
    return shape.n_layers * cells * settings.parallel * per_cell


def check_settings(shape: Shape, settings: Settings) -> None:
    """Refuse what llama.cpp would refuse.

    Raises:
        FitError: the context is longer than any, the KV type needs flash attention, or heads of
            another length.

    """
    wanted = settings.context * settings.parallel
    if wanted > LONGEST:
        raise FitError(
            f"Contexts of {wanted:,} tokens are more than the {LONGEST:,} that can be tried; give "
            "a shorter --context, or fewer at a time with --parallel."
        )
    kind = encoding(settings.kv_type.upper())
    if kind.is_block and not settings.flash_attn:
        raise FitError(
            f"A KV cache of type {settings.kv_type} needs flash attention; leave out "
            "--no-flash-attn, or use --kv-type f16."
        )
    for length in (shape.key_length, shape.value_length):
        if not kind.holds_rows_of(length):
            raise FitError(
                f"A KV cache of type {settings.kv_type} needs heads of a multiple of "
                f"{kind.elements} numbers, and this model's have {length}; use --kv-type f16."
            )


def probe(subject: Subject, settings: Settings, *, gpu: bool = False) -> Curve:
    """Dry-load a model in llama.cpp at the wanted context and at a ladder of others.

    Args:
        subject: the model; its own GGUF is loaded, or one with its header and no weights.
        settings: how it is to be run.
        gpu: ask this machine's GPUs too, where llama.cpp is built for them.

    Raises:
        FitError: llama.cpp refuses the settings.
        GGUFError: llama.cpp refuses the model.
        NativeError: llama.cpp is not installed or does not run.

    """
    check_settings(subject.shape, settings)
    trained = min(subject.shape.n_ctx_train, LONGEST // settings.parallel)
    longest = max(-(-trained // CELLS) * CELLS, settings.cells)
    ladder = sorted({settings.cells, longest, CELLS, *_powers(longest)})
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        file = subject.gguf or _write_hollow(Path(folder), subject.hollow)
        on_cpu, has_gpu = _dry_run(file, settings, ladder, gpu=False)
        on_gpu = _dry_run(file, settings, ladder, gpu=True)[0] if gpu and has_gpu else None
    probes = []
    for i, cells in enumerate(ladder):
        kv, compute, output = (_sum(on_cpu[i], part) for part in ("KV total", "compute", "output"))
        exact = kv_bytes(subject.shape, settings, cells)
        probes.append(
            Probe(
                cells=cells,
                kv=exact if _agree(exact, kv) else kv,
                compute=compute,
                output=output,
                gpu_compute=None if on_gpu is None else _largest_on_gpu(on_gpu[i]),
            )
        )
    return Curve(subject.shape, settings, tuple(probes))


def buffers(
    file: Path,
    settings: Settings,
    ladder: Sequence[int],
    *,
    dry: bool,
    gpu: bool = False,
) -> dict[str, Any]:
    """What ``verify.bindings.buffers`` returns for a file and contexts, from a subprocess.

    Raises:
        GGUFError: llama.cpp refuses the model or the settings.
        NativeError: llama.cpp is not installed or does not run.

    """
    request = {
        "task": "buffers",
        "file": str(file.absolute()),
        "dry": dry,
        "gpu": gpu,
        "settings": [
            {
                "n_ctx": cells * settings.parallel,
                "n_seq": settings.parallel,
                "kv_type": encoding(settings.kv_type.upper()).id,
                "flash_attn": settings.flash_attn,
            }
            for cells in ladder
        ],
    }
    run = run_worker(request, timeout=_TIMEOUT, gpu=gpu)
    if run.signal == "SIGABRT":  # a check of its own failed
        raise GGUFError(
            f"{file.name} has numbers in its header that llama.cpp cannot work with: {run.failure}"
        )
    if run.failure or run.result is None:
        raise NativeError(f"The dry run did not finish. {run.failure} Run quantkit doctor.")
    if "refused" in run.result:
        raise GGUFError(str(run.result["refused"]))
    return run.result


def _dry_run(
    file: Path, settings: Settings, ladder: Sequence[int], *, gpu: bool
) -> tuple[list[list[tuple[str, str, float]]], bool]:
    result = buffers(file, settings, ladder, dry=True, gpu=gpu)
    return result["contexts"], result["gpu"]


def _write_hollow(folder: Path, hollow: Sequence[Hollow]) -> Path:
    """Files with real headers and holes for their weights; the first of them."""
    for file in hollow:
        write_file(folder / file.name, file.header, file.n_bytes)
    return folder / hollow[0].name


def _powers(longest: int) -> Iterable[int]:
    """Contexts between the shortest and the longest, each four times the one before."""
    cells = 2 * CELLS  # below 512 tokens the batches are shorter too, and the line is broken
    while cells < longest:
        yield cells
        cells *= 4


def _sum(found: Iterable[tuple[str, str, float]], part: str) -> int:
    return round(sum(mebibytes for _, kind, mebibytes in found if kind == part) * _MIB)


def _largest_on_gpu(found: Iterable[tuple[str, str, float]]) -> int | None:
    sizes = [
        round(mebibytes * _MIB)
        for device, kind, mebibytes in found
        if kind == "compute" and device != "CPU" and not device.endswith("_Host")
    ]
    return max(sizes, default=None)


def _agree(exact: int, logged: int) -> bool:
    """Whether a figure is what llama.cpp logs, which has two decimals."""
    return abs(exact - logged) <= 0.0051 * _MIB
