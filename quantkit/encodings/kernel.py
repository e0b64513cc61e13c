"""The kernels by name: ``--kernel fast`` is ours, ``--kernel ggml`` the one it must agree with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import PlanError
from quantkit.encodings import ggml
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.slab import Slab

Encode: TypeAlias = Callable[[Slab, Encoding, NDArray[np.float32] | None], NDArray[np.uint8]]
# (encoding, with importance) pairs, dtypes of the source, and whom to tell what takes a while
Prepare: TypeAlias = Callable[
    [Iterable[tuple[Encoding, bool]], Iterable[str], Callable[[str], None]], None
]
_SEARCHED = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})
_SEARCHED_WEIGHTED = frozenset(
    {"IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M"}
)


def is_searched(name: str, weighted: bool) -> bool:
    """Whether the search ``best`` encodes a format otherwise, with or without importance."""
    return name in _SEARCHED or (weighted and name in _SEARCHED_WEIGHTED)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to encode rows.

    ``encode(slab, encoding, importance)`` gives the bytes; see ``fast.encode.encode``. ``prepare``
    gets ready for certain encodings, which may take a while once. ``search`` says how scales are
    chosen: ``ggml``, as ggml does, or ``best``.
    """

    name: str
    version: str
    encode: Encode
    prepare: Prepare
    search: str = "ggml"


def _ggml(search: str) -> Kernel:
    if search != "ggml":
        raise PlanError(f"--search {search} needs --kernel fast: ggml has only its own search.")
    return Kernel(
        "ggml",
        ggml.version(),
        lambda slab, encoding, importance: ggml.encode(slab.rows, encoding, importance),
        lambda _encodings, _dtypes, _report: None,
    )


def _fast(search: str) -> Kernel:
    from quantkit.encodings.fast.encode import encode, version
    from quantkit.encodings.fast.prepare import prepare

    return Kernel(
        "fast",
        version(),
        partial(encode, search=search),
        partial(prepare, search=search),
        search,
    )


KERNELS: dict[str, Callable[[str], Kernel]] = {"fast": _fast, "ggml": _ggml}


def load_kernel(name: str, search: str = "ggml") -> Kernel:
    """The kernel called ``name``, a key of ``KERNELS``, checked to be usable.

    Raises:
        NativeError: ggml's library is missing.
        PlanError: the kernel does not have this search.

    """
    ggml.library_path()
    return KERNELS[name](search)
