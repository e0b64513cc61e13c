"""The kernels by name: ``--kernel fast`` is ours, ``--kernel ggml`` the one it must agree with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings import ggml
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.slab import Slab

Encode: TypeAlias = Callable[[Slab, Encoding, NDArray[np.float32] | None], NDArray[np.uint8]]
# (encoding, with importance) pairs, dtypes of the source, and whom to tell what takes a while
Prepare: TypeAlias = Callable[
    [Iterable[tuple[Encoding, bool]], Iterable[str], Callable[[str], None]], None
]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to encode rows.

    ``encode(slab, encoding, importance)`` gives the bytes; see ``fast.encode.encode``. ``prepare``
    gets ready for certain encodings, which may take a while once.
    """

    name: str
    version: str
    encode: Encode
    prepare: Prepare


def _ggml() -> Kernel:
    ggml.library_path()
    return Kernel(
        "ggml",
        ggml.version(),
        lambda slab, encoding, importance: ggml.encode(slab.rows, encoding, importance),
        lambda _encodings, _dtypes, _report: None,
    )


def _fast() -> Kernel:
    from quantkit.encodings.fast import encode as fast

    ggml.library_path()
    return Kernel("fast", fast.version(), fast.encode, fast.prepare)


KERNELS: dict[str, Callable[[], Kernel]] = {"fast": _fast, "ggml": _ggml}


def load_kernel(name: str) -> Kernel:
    """The kernel called ``name``, a key of ``KERNELS``, checked to be usable.

    Raises:
        NativeError: ggml's library is missing.

    """
    return KERNELS[name]()
