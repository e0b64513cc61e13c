"""What llama.cpp itself says that a context takes: KV cache, compute and output buffers.

A GGUF's header alone is enough for that. It is written to a sparse file, which llama.cpp loads
without allocating anything, in a subprocess, and logs the size of each buffer that it would make.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.core.errors import GGUFError, NativeError, QuantkitError
from quantkit.core.printable import quoted
from quantkit.encodings.encoding import encoding
from quantkit.fitting.kept import recall
from quantkit.fitting.model import SizedModel
from quantkit.fitting.settings import CELLS, LONGEST, ContextSettings, FitError, check_settings
from quantkit.fitting.shape import Shape
from quantkit.verification.hollow import most_bytes, write_hollow
from quantkit.verification.llama import run_worker

UBATCH = 512  # tokens of a prompt that are computed at once; llama.cpp's default for -ub
# Who logs states with a length, which is the number of sequences; all else with one is a cache.
_RECURRENT = "llama_memory_recurrent"
_MIB = 2**20
_TIMEOUT = 120


@dataclass(frozen=True, slots=True)
class Held:
    """A cache, or the states, of some layers: its bytes, and its length where it is a cache.

    No ``layers`` stands for all, where llama.cpp does not tell.
    """

    n_bytes: int
    cells: int
    layers: tuple[int, ...]

    def between(self, longer: "Held", share: float) -> "Held":
        """The same cache in a context that is so much longer, where it is ``longer`` at most.

        A cache grows with the context until it is as long as its window.
        """
        cells = min(longer.cells, round(self.cells * share))
        return replace(longer, cells=cells, n_bytes=round(longer.n_bytes * cells / longer.cells))


@dataclass(frozen=True, slots=True)
class Probe:
    """The buffers of one context in bytes, as llama.cpp tells them: to a hundredth of a MiB.

    ``caches`` hold keys and values, ``states`` what recurrent layers remember, whose size does not
    depend on the context. ``gpu_compute`` is the largest compute buffer on one GPU, None where this
    build of llama.cpp has no GPU backend or was not asked.
    """

    cells: int
    caches: tuple[Held, ...]
    compute: int
    output: int
    gpu_compute: int | None = None
    states: tuple[Held, ...] = ()

    @property
    def kv(self) -> int:
        """Bytes of all caches."""
        return sum(held.n_bytes for held in self.caches)

    @property
    def state(self) -> int:
        """Bytes of all states."""
        return sum(held.n_bytes for held in self.states)


@dataclass(frozen=True, slots=True)
class Curve:
    """Buffers as a function of the context, from probes at some contexts, shortest first.

    A compute buffer is the largest of several needs that are each linear in the context, or grow
    faster, so it is convex, and a straight line between two probes is never below it.

    ``use`` is what the model does: ``text``, ``embedding``, ``encoder-decoder``, ``diffusion``. One
    that sees ``whole_texts`` gets batches as long as the context. ``unused`` are tensors that
    llama.cpp leaves in the file. ``projector`` are the bytes of the model's vision or audio part.
    """

    shape: Shape
    settings: ContextSettings
    probes: tuple[Probe, ...]
    use: str = "text"
    whole_texts: bool = False
    unused: frozenset[str] = frozenset()
    projector: int = 0

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
        if self.kv_is_exact and exact is not None:
            caches: tuple[Held, ...] = (Held(exact, cells, ()),)
        else:
            pairs = zip(below.caches, above.caches, strict=True)
            caches = tuple(low.between(high, cells / below.cells) for low, high in pairs)
        return Probe(
            cells=cells,
            caches=caches,
            compute=between(below.compute, above.compute),
            output=max(below.output, above.output),
            gpu_compute=gpu,
            states=above.states,
        )

    @property
    def kv_is_exact(self) -> bool:
        """Whether llama.cpp agrees with ``kv_bytes``; a cache may also be windowed or shared."""
        return all(p.kv == kv_bytes(self.shape, self.settings, p.cells) for p in self.probes)

    @property
    def longest(self) -> int:
        """The longest context that was probed."""
        return max(probe.cells for probe in self.probes)

    def batch(self, cells: int) -> int:
        """Tokens that are computed at once in a context of ``cells`` per sequence."""
        return cells if self.whole_texts else UBATCH


def kv_bytes(shape: Shape, settings: ContextSettings, cells: int) -> int | None:
    """Bytes of the KV cache if every layer keeps a key and a value per token and KV head.

    None for a model whose layers are not all alike.
    """
    if shape.n_kv_heads is None or shape.key_length is None or shape.value_length is None:
        return None
    kind = encoding(settings.kv_type.upper())
    rows = shape.n_kv_heads * shape.key_length, shape.n_kv_heads * shape.value_length
    per_cell = sum(kind.row_bytes(columns) for columns in rows)
    return shape.n_layers * cells * settings.parallel * per_cell


def probe(subject: SizedModel, settings: ContextSettings, *, gpu: bool = False) -> Curve:
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
        told = _told(subject, Path(folder), settings, ladder)
        probes = [*map(_probe, ladder, told["contexts"])]
        if windows := _windows(probes[-1]) - set(ladder):
            ladder += sorted(windows)
            more = _told(subject, Path(folder), settings, sorted(windows))["contexts"]
            probes += map(_probe, sorted(windows), more)
        if gpu and told["gpu"]:
            file = _file_of(subject, Path(folder))
            on_gpu = buffers(file, settings, ladder, dry=True, gpu=True)["contexts"]
            sizes = (_largest_on_gpu(context["buffers"]) for context in on_gpu)
            probes = [replace(p, gpu_compute=n) for p, n in zip(probes, sizes, strict=True)]
    probes.sort(key=lambda probe: probe.cells)
    return Curve(
        shape=subject.shape,
        settings=settings,
        probes=_exactly(probes, subject.shape, settings),
        use=told["use"],
        whole_texts=told["whole_texts"],
        unused=frozenset(told["unused"]),
        projector=subject.projector,
    )


def _file_of(subject: SizedModel, folder: Path) -> Path:
    """A file that llama.cpp can be asked about: the model's own, or one without its weights."""
    return subject.gguf or write_hollow(folder, subject.hollow)


def _told(
    subject: SizedModel, folder: Path, settings: ContextSettings, ladder: Sequence[int]
) -> dict[str, Any]:
    """What `buffers` tells in a dry run; of a header alone it is kept, and not asked again."""

    def ask() -> dict[str, Any]:
        return buffers(_file_of(subject, folder), settings, ladder, dry=True)

    if subject.gguf is not None:
        return ask()
    asked = {**asdict(settings), "context": 0, "ladder": list(ladder)}
    return recall(subject.hollow, asked, ask)


def _windows(longest: Probe) -> set[int]:
    """Contexts from which on a cache grows no more: there, buffers as a function have a bend."""
    lengths = {held.cells for held in longest.caches if held.n_bytes}
    return {cells for cells in lengths if cells < longest.cells and not cells % CELLS}


def _probe(cells: int, told: Mapping[str, Any]) -> Probe:
    caches: list[Held] = []
    states: list[Held] = []
    for function, mebibytes, length, layers in told["memory"]:
        held = Held(round(mebibytes * _MIB), length, tuple(layers))
        (caches if length and function != _RECURRENT else states).append(held)
    return Probe(
        cells=cells,
        caches=tuple(caches),
        compute=_sum(told["buffers"], "compute"),
        output=_sum(told["buffers"], "output"),
        states=tuple(states),
    )


def _exactly(probes: Sequence[Probe], shape: Shape, settings: ContextSettings) -> tuple[Probe, ...]:
    """The probes with counted caches, if llama.cpp's figures are those at every context."""
    exact = [kv_bytes(shape, settings, probe.cells) for probe in probes]
    counted = []
    for probe, n_bytes in zip(probes, exact, strict=True):
        if n_bytes is None or not _agree(n_bytes, probe.kv):
            return tuple(probes)
        counted.append(replace(probe, caches=(Held(n_bytes, probe.cells, ()),)))
    return tuple(counted)


def buffers(
    file: Path,
    settings: ContextSettings,
    ladder: Sequence[int],
    *,
    dry: bool,
    gpu: bool = False,
) -> dict[str, Any]:
    """What ``verify.buffers.buffers`` returns for a file and contexts, from a subprocess.

    Raises:
        FitError: what llama.cpp allocates even in a dry run is too much for this machine.
        GGUFError: llama.cpp refuses the model or the settings.
        NativeError: llama.cpp is not installed or does not run.

    """
    request = {
        "task": "buffers",
        "file": str(file.absolute()),
        "dry": dry,
        "gpu": gpu,
        "most_bytes": most_bytes() if dry else None,
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
        if settings.parallel > 1:
            buffers(
                file, replace(settings, parallel=1), [CELLS], dry=dry
            )  # is it the file's fault?
            raise FitError(
                f"llama.cpp cannot run {file.name} for several sequences at a time; leave out "
                f"--parallel. {run.failure}"
            )
        raise GGUFError(
            f"{file.name} has numbers in its header that llama.cpp cannot work with: {run.failure}"
        )
    if run.failure or run.result is None:
        raise NativeError(f"The dry run did not finish. {run.failure} Run quantkit doctor.")
    if "refused" in run.result:
        raise _refusal(file, str(run.result["refused"]), settings)
    return run.result


def _refusal(file: Path, reason: str, settings: ContextSettings) -> QuantkitError:
    if "unknown model architecture" in reason:
        arch = reason.partition("architecture: ")[2].strip(" '.")
        return GGUFError(
            f"{file.name} is of architecture {quoted(arch)}, which the installed llama.cpp does "
            "not know; a newer one may: pip install --upgrade llama-cpp-python."
        )
    if any(word in reason for word in ("insufficient memory", "failed to allocate", "bad_alloc")):
        fewer = "fewer sequences with --parallel, or " if settings.parallel > 1 else ""
        return FitError(
            f"The states of {file.name}, which llama.cpp takes memory for even in a dry run, are "
            f"more than is free here; give {fewer}a machine with more memory."
        )
    return GGUFError(reason)


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
