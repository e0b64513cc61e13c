"""llama.cpp's library and what it says. Only ever imported in the worker.

Source: llama.cpp's ``include/llama.h`` and ``ggml/include/gguf.h``, through the ctypes
declarations of llama-cpp-python.
"""

import ctypes
import importlib
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from quantkit.core.errors import NativeError, SmokeError
from quantkit.verification.llama import REINSTALL

_LOG_DEBUG, _LOG_INFO, _LOG_WARN, _LOG_ERROR = 1, 2, 3, 4  # ggml_log_level


@cache
def library() -> Any:
    """llama-cpp-python's declarations, ``llama_cpp.llama_cpp``, and nothing else of it.

    An empty module stands in for the package, because its own ``__init__`` imports chat
    templates, a server's helpers and more, which takes longer than a small smoke test.

    Raises:
        NativeError: it is not installed, or its libraries do not load.

    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise NativeError("llama-cpp-python is not installed; pip install llama-cpp-python.")
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    try:
        module = importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, AttributeError, ImportError) as error:
        raise NativeError(f"llama-cpp-python does not load ({error}); {REINSTALL}") from None
    _listen(module)
    module.llama_backend_init()
    return module


errors: list[str] = []


remarks: list[str] = []  # lines about memory, which no function returns


# What lines about memory have, by level: sizes, a layer of a cache, a tensor that is not loaded.
_TELLS = {_LOG_INFO: b" MiB", _LOG_DEBUG: b": dev = ", _LOG_WARN: b"unused tensor"}


_callbacks: list[Any] = []  # what C holds a pointer to must outlive the call that passed it


def _listen(module: Any) -> None:
    def note(level: int, text: bytes, _user_data: object) -> None:
        if level == _LOG_ERROR:
            line = text.decode(errors="replace").strip()
            errors.append(line)
            sys.stderr.write(line + "\n")
        elif _TELLS.get(level, b"\0") in text:
            remarks.append(text.decode(errors="replace").strip())

    callback = module.llama_log_callback(note)
    _callbacks.append(callback)
    module.llama_log_set(callback, None)


def complaint() -> str:
    """The first error that llama.cpp logged: the others only report that it gave up."""
    if not errors:
        return "no reason given"
    bare = re.sub(r"^(\w+: )*(error loading model: )?(\w+: )*", "", errors[0])
    return " ".join(bare.split()).rstrip(".")


def facts() -> dict[str, str]:
    """What llama.cpp says of itself: ``version`` and ``system_info`` (its instruction sets)."""
    llama = library()
    return {
        "version": llama.llama_version().decode(),
        "system_info": llama.llama_print_system_info().decode().strip(" |\n"),
    }


def ggml_library(function: str) -> Any:
    """The library that has a function of ggml's, as ctypes opens it."""
    llama = library()._lib
    if hasattr(llama, function):
        return llama
    from quantkit.encodings.ggml import library_path

    return ctypes.CDLL(str(library_path()))  # Windows looks no further than libllama


def projector_library() -> Any:
    """llama-cpp-python's declarations of what sees and hears, ``llama_cpp.mtmd_cpp``.

    Raises:
        NativeError: it is not installed, or its libraries do not load.

    """
    llama = library()
    try:
        mtmd = importlib.import_module("llama_cpp.mtmd_cpp")
    except (OSError, RuntimeError, AttributeError, ImportError) as error:
        raise NativeError(f"llama-cpp-python does not load ({error}); {REINSTALL}") from None

    def note(level: int, text: bytes, _user_data: object) -> None:
        line = text.decode(errors="replace").strip()
        if level == _LOG_ERROR and line:
            errors.append(line)
            sys.stderr.write(line + "\n")

    callback = llama.llama_log_callback(note)
    _callbacks.append(callback)
    mtmd.mtmd_log_set(callback, None)
    return mtmd


def load_model(file: Path, *, dry: bool, gpu: bool) -> Any:
    """A model, allocated or not, on the CPU or on all GPUs that there are."""
    llama = library()
    no_devices = (ctypes.c_void_p * 1)(None)
    params = llama.llama_model_default_params()
    params.no_alloc = dry
    params.load_mode = llama.LLAMA_LOAD_MODE_NONE  # a dry run of a mapped file aborts
    params.use_extra_bufts = False
    if gpu:
        params.n_gpu_layers = -2  # all
    else:
        params.devices = ctypes.addressof(no_devices)
        params.n_gpu_layers = 0
    errors.clear()
    remarks.clear()
    model = llama.llama_model_load_from_file(os.fsencode(file), params)
    if not model:
        raise SmokeError(f"llama.cpp does not load {file.name}: {complaint()}.")
    return model
