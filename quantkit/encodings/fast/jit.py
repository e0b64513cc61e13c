"""How the kernels are compiled, and where the machine code is kept between runs."""

import hashlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import Compiler

from quantkit.core.files import read_file
from quantkit.core.system import user_cache

_HERE = Path(__file__).resolve().parent
_options = {"error_model": "numpy"}  # as in C, dividing by 0 gives infinity


class _Draft(Compiler):
    """Leaves all optimizing to the caller, of which a function becomes part.

    numba would optimize it on every floor between itself and its kernel, which is a third of the
    time that the kernels take to compile.
    """

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        usual = numba.config.OPT
        numba.config.OPT = type(usual)(1)  # numba's lock is held: no other thread compiles
        try:
            return super().compile_extra(func)
        finally:
            numba.config.OPT = usual


# Functions of vectors must become part of their caller: a call would pass vectors through memory.
inlined: Callable[..., Any] = numba.njit(
    pipeline_class=_Draft,
    forceinline=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    **_options,
)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel at its first call, without the GIL, and keep the result on disk."""
    kernel = numba.njit(nogil=True, **_options)(function)
    folder = _cache_folder(numba.config.CACHE_DIR)
    if folder is not None:
        usual = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            kernel.enable_caching()
        finally:
            numba.config.CACHE_DIR = usual
    return kernel


def keeps_results() -> bool:
    """Whether what is compiled here is there for the next process."""
    return _cache_folder(numba.config.CACHE_DIR) is not None


@cache
def _cache_folder(given: str) -> Path | None:
    """A folder for exactly these sources; None where none can be written.

    numba looks only at the file of the kernel itself to see whether its cache is stale, and not at
    the files of what the kernel calls.
    """
    ours = Path(given) / "quantkit" if given else user_cache()  # NUMBA_CACHE_DIR
    digest = hashlib.sha256()
    for source in sorted(_HERE.glob("*.py")):
        digest.update(read_file(source))
    folder = ours / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None
