"""The facts behind "it does not work on my machine", each with what to do about it."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.checkpoint.converter.provision import State, converter_state, why_lacking
from quantkit.core.errors import NativeError
from quantkit.core.packages import DISTRIBUTION
from quantkit.core.units import format_size
from quantkit.core.version import __version__
from quantkit.verification.llama import REINSTALL, run_worker
from quantkit.verification.machine import cpu_name, instruction_sets, memory, usable_cores

Status = Literal["ok", "note", "missing"]

_FACTS_SECONDS = 60
# Distribution, module, and what quantkit or its user wants it for.
_REQUIRED = (
    ("gguf", "gguf", "metadata and naming rules"),
    ("huggingface_hub", "huggingface_hub", "checkpoints on the Hub"),
    ("numpy", "numpy", "weights"),
    ("rich", "rich", "progress"),
    ("sentencepiece", "sentencepiece", "tokenizer.model"),
    ("tokenizers", "tokenizers", "tokenizer.json"),
    ("typer", "typer", "the command line"),
)
_OPTIONAL = (
    ("torch", "torch", "calibration, GPTQ and bitsandbytes quants"),
    ("transformers", "transformers", "loading bitsandbytes quants, build --prove"),
    ("bitsandbytes", "bitsandbytes", "bitsandbytes quants"),
    ("accelerate", "accelerate", "loading bitsandbytes quants"),
    ("matplotlib", "matplotlib", "pictures"),
    ("ray", "ray", "build --cluster"),
    ("model-signing", "model_signing", "signatures"),
)
_GPU_BACKENDS = ("cuda", "hip", "metal", "vulkan", "sycl", "musa", "cann", "opencl")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact.

    ``status`` is ``ok``, ``note`` (works, but worth knowing) or ``missing`` (something quantkit
    needs is not there); ``advice`` says what to do then.
    """

    name: str
    value: str
    status: Status = "ok"
    advice: str | None = None


def examine() -> list[Finding]:
    """Everything worth knowing when quantkit does not work. Takes about two seconds."""
    return [
        *_software(),
        *(examine_converter(converter_state()) if importlib.util.find_spec("platformdirs") else ()),
        *_native(),
        *_hardware(),
        examine_trap(),
    ]


def examine_converter(state: State) -> Iterator[Finding]:
    """Whether llama.cpp's converter, which describes other checkpoints, is there. Fetches none."""
    when = "not fetched yet (which is done when a checkpoint first needs it)"
    parts = (
        ("converter", state.source, state.version, ""),
        ("converter's packages", state.packages, state.packages_wanted, state.packages_for),
    )
    for name, there, what, kind in parts:
        value = f"{what}{kind and f' for {kind}'}"
        if there:
            yield Finding(name, f"{value} in {state.folder}")
        else:
            yield Finding(name, f"{value}, {when}", "note", "quantkit doctor --fetch-converter")
    if state.lacking:
        yield Finding(
            "converter's extra",
            "not installed (for checkpoints of other architectures)",
            "note",
            why_lacking(state.lacking),
        )


def examine_trap() -> Finding:
    """Whether llama.cpp's default CPU path crashes here, found out by trying.

    Virtual machines may show AMX and yet forbid it. llama.cpp built for such a machine then dies
    on every quantized model, unless it is told to leave its extra buffer types alone.
    """
    name = "AMX trap"
    try:
        from quantkit.verification.smoke import smoke_specimen

        plain = smoke_specimen(extra_buffers=False)
        extra = smoke_specimen(extra_buffers=True)
    except NativeError as error:
        return Finding(name, "not tried, llama.cpp cannot be used", "missing", str(error))
    except ImportError as error:
        return Finding(
            name, f"not tried, {error.name} is missing", "missing", f"pip install {error.name}"
        )
    return judge_trap(plain=plain, extra=extra)


def judge_trap(*, plain: str | None, extra: str | None) -> Finding:
    """What two runs of a tiny sound model tell.

    Args:
        plain: why it failed without extra buffer types, None if it ran.
        extra: the same with them, llama.cpp's default.

    """
    name = "AMX trap"
    if plain:
        return Finding(
            name,
            f"llama.cpp does not run here: {plain}",
            "missing",
            f"Build it for any processor: {REINSTALL}",
        )
    if extra:
        return Finding(
            name,
            f"present: with its default settings, {extra}",
            "note",
            "quantkit runs llama.cpp with use_extra_bufts=False and is not affected. For your "
            f"own programs do the same, or: {REINSTALL}",
        )
    return Finding(name, "none, llama.cpp runs with and without its extra buffers")


def _software() -> Iterator[Finding]:
    yield Finding("quantkit", f"{__version__} ({Path(__file__).parents[1]})")
    yield from find_namesakes()
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    for distribution, module, purpose in _REQUIRED:
        yield _package(distribution, module, purpose, "missing")
    for distribution, module, purpose in _OPTIONAL:
        yield _package(distribution, module, purpose, "note")


def find_namesakes() -> Iterator[Finding]:
    """Other distributions that install a package called quantkit, whose files get mixed."""
    for name in dict.fromkeys(importlib.metadata.packages_distributions().get("quantkit", ())):
        if canonical(name) != DISTRIBUTION:
            yield Finding(
                f"another quantkit: {name}",
                f"{_version(name)} installs the same package, whose files overwrite these",
                "note",
                f"pip uninstall {name} {DISTRIBUTION}; pip install {DISTRIBUTION}",
            )


def canonical(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _package(distribution: str, module: str, purpose: str, absent: Status) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(
            distribution,
            f"not installed (for {purpose})",
            absent,
            f"pip install {distribution}",
        )
    return Finding(distribution, _version(distribution))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _native() -> Iterator[Finding]:
    """llama-cpp-python and the libraries in it."""
    package = _package("llama-cpp-python", "llama_cpp", "the kernels and the smoke test", "missing")
    yield package
    if package.status == "missing":
        return
    try:
        from quantkit.encodings.ggml import library_path

        base = library_path()
        has_kernels = hasattr(ctypes.CDLL(str(base)), "ggml_quantize_chunk")
    except (NativeError, ImportError, OSError) as error:
        yield Finding("ggml kernels", str(error), "missing", REINSTALL)
        return
    if has_kernels:
        yield Finding("ggml kernels", f"ggml_quantize_chunk in {base}")
    else:
        yield Finding("ggml kernels", f"no ggml_quantize_chunk in {base}", "missing", REINSTALL)
    yield from _llama_facts()
    backends = [name for name in _GPU_BACKENDS if any(base.parent.glob(f"*ggml-{name}.*"))]
    yield Finding("GPU backend", ", ".join(backends) or "none compiled in (quantkit needs none)")


def _llama_facts() -> Iterator[Finding]:
    try:
        run = run_worker({"task": "facts"}, timeout=_FACTS_SECONDS)
    except NativeError as error:
        yield Finding("llama.cpp", str(error), "missing", REINSTALL)
        return
    if run.result is None:
        yield Finding("llama.cpp", str(run.failure), "missing", REINSTALL)
        return
    yield Finding("llama.cpp", run.result["version"])
    yield Finding("llama.cpp system info", run.result["system_info"])


def _hardware() -> Iterator[Finding]:
    yield Finding("processor", cpu_name())
    yield Finding("instruction sets", ", ".join(instruction_sets()) or "unknown")
    cores, usable = os.cpu_count() or 1, usable_cores()
    yield Finding("cores", f"{cores} logical, {usable} usable by this process")
    found = memory()
    if found is None:
        yield Finding("memory", "unknown")
    else:
        limit = " (limited by its control group)" if found.limited else ""
        yield Finding(
            "memory", f"{format_size(found.total)}{limit}, {format_size(found.available)} available"
        )
    yield _disk()


def _disk() -> Finding:
    try:
        here = Path.cwd()
        return Finding("disk", f"{format_size(shutil.disk_usage(here).free)} free in {here}")
    except OSError as error:
        return Finding("disk", f"unknown ({error.strerror})", "note", "Work in another folder.")
