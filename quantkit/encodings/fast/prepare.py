"""Machine code for what a build will call: of an earlier run, or compiled now.

numba holds one lock per process while it compiles, so threads would wait for each other: processes
of their own compile, as many at a time as there are cores. What they compile lies on disk when
they end, where this process and all later ones find it. A kernel's shared functions are compiled
once per process, so kernels that share them go to the same one.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, pairwise
from typing import TypeAlias

import numba
import numpy as np
from numba.core.event import Listener

from quantkit.core.child import child_environment
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.encodings.encoding import Encoding, encoding
from quantkit.encodings.fast.encode import SUPERBLOCK, encode, has_kernel
from quantkit.encodings.fast.jit import keeps_results
from quantkit.encodings.slab import Slab

Wish: TypeAlias = tuple[str, bool]  # an encoding's name, and whether it is wanted with importance

# Neighbours share functions. Seconds of one core of an EPYC 9B14, to share out the work by.
_SECONDS = {
    ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"): 20,
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1"): 10,
    ("IQ4_XS", "IQ4_NL"): 5,
    ("IQ3_S", "IQ3_XXS"): 20,
    ("IQ2_S", "IQ2_XS", "IQ2_XXS"): 15,
    ("IQ1_S", "IQ1_M"): 10,
}


def prepare(
    encodings: Iterable[tuple[Encoding, bool]],
    dtypes: Iterable[str],
    report: Callable[[str], None],
    search: str = "ggml",
) -> None:
    """Compile or load what a build will call, so that it can say so and threads need not wait.

    Args:
        encodings: and whether each is wanted with importance.
        dtypes: of the source.
        report: told once, before it is done, what has to be compiled; not where the machine code of
            an earlier run serves.
        search: as for ``encode``.

    """
    dtypes = sorted(dtypes)
    wanted = [(kind, weighted) for kind, weighted in encodings if has_kernel(kind, weighted)]
    missing = [wish for wish in wanted if not _is_compiled(wish, dtypes, search)]
    if not missing:
        return
    names = ", ".join(dict.fromkeys(kind.name for kind, _ in missing))
    if not keeps_results():
        report(
            f"Compiling kernels: {names}. They cannot be saved for next time; set NUMBA_CACHE_DIR "
            "to a writable folder."
        )
    else:
        report(f"Compiling kernels, once for this machine: {names}")
        _compile_apart([(kind.name, weighted) for kind, weighted in missing], dtypes, search)
    _compile_here(missing, dtypes, search)


def _is_compiled(wish: tuple[Encoding, bool], dtypes: Iterable[str], search: str) -> bool:
    """Whether machine code of an earlier run was found, and is now loaded."""
    listener = _Refusing()
    numba.core.event.register("numba:compile", listener)
    try:
        _compile_here([wish], dtypes, search)
    except _NotCompiledError:
        return False
    finally:
        numba.core.event.unregister("numba:compile", listener)
    return True


class _NotCompiledError(Exception):
    pass


class _Refusing(Listener):
    """Stops numba when it begins to compile."""

    def on_start(self, event: object) -> None:  # noqa: ARG002 - numba passes it
        raise _NotCompiledError

    def on_end(self, event: object) -> None:
        pass


def _compile_here(
    encodings: Iterable[tuple[Encoding, bool]], dtypes: Iterable[str], search: str
) -> None:
    """Compile or load kernels in this process, one after the other, by calling them.

    Args:
        encodings: those with a kernel, and whether each is wanted with importance.
        dtypes: of the source.
        search: as for ``encode``.

    """
    for kind, weighted in encodings:
        importance = np.ones(SUPERBLOCK, np.float32) if weighted else None
        for dtype in dtypes:
            raw = np.zeros(SUPERBLOCK * FLOAT_BYTES[dtype], np.uint8)
            encode(Slab(raw, dtype, SUPERBLOCK), kind, importance, search)


def _compile_apart(wishes: Sequence[Wish], dtypes: Sequence[str], search: str) -> None:
    """Compile kernels into the cache; what fails there is left for the caller to compile.

    Args:
        wishes: what to compile.
        dtypes: of the rows to encode.
        search: ``ggml`` or ``best``.

    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = [sys.executable, "-P", "-m", "quantkit.encodings.fast.prepare"]
    processes = [
        subprocess.Popen(
            [
                *command,
                search,
                ",".join(dtypes),
                *(f"{name}:{weighted:d}" for name, weighted in share),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": child_environment()["PYTHONPATH"]},
        )
        for share in shares(wishes, cores or 1)
    ]
    try:
        for process in processes:
            process.wait()
    finally:  # interrupted: nobody waits for them
        for process in processes:
            process.kill()
            process.wait()


def shares(wishes: Iterable[Wish], n: int) -> list[list[Wish]]:
    """Wishes for each of at most ``n`` processes, such that the longest takes as short as can be.

    Args:
        wishes: in any order.
        n: how many processes there may be, at least 1.

    """
    wanted = list(wishes)
    families = [([x for x in wanted if x[0] in names], s) for names, s in _SECONDS.items()]
    families = [(family, s) for family, s in families if family]
    known = [x for family, _ in families for x in family]
    families += [([x], 5) for x in wanted if x not in known]

    def cut(at: Sequence[int]) -> list[list[tuple[list[Wish], int]]]:
        edges = [0, *at, len(families)]
        return [families[a:b] for a, b in pairwise(edges)]

    cuts = combinations(range(1, len(families)), min(n, len(families)) - 1) if families else []
    best = min((cut(at) for at in cuts), key=lambda parts: max(map(_seconds, parts)), default=[])
    return [[x for family, _ in part for x in family] for part in best]


def _seconds(part: list[tuple[list[Wish], int]]) -> int:
    return sum(seconds for _, seconds in part)


def _main() -> None:
    search, dtypes, *wishes = sys.argv[1:]
    pairs = [wish.split(":") for wish in wishes]
    wanted = [(encoding(name), weighted == "1") for name, weighted in pairs]
    _compile_here(wanted, dtypes.split(","), search)


if __name__ == "__main__":
    _main()
