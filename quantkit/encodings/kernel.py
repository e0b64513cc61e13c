"""The kernels by name: ``--kernel ggml`` now, others beside it later."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.encodings import ggml
from quantkit.encodings.encoding import Encoding

Encode: TypeAlias = Callable[
    [NDArray[np.float32], Encoding, NDArray[np.float32] | None], NDArray[np.uint8]
]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to encode rows: ``encode(rows, encoding, importance)``; see ``ggml.encode``."""

    name: str
    version: str
    encode: Encode


def _ggml() -> Kernel:
    ggml.library_path()
    return Kernel("ggml", ggml.version(), ggml.encode)


KERNELS: dict[str, Callable[[], Kernel]] = {"ggml": _ggml}


def load_kernel(name: str) -> Kernel:
    """The kernel called ``name``, a key of ``KERNELS``, checked to be usable.

    Raises:
        NativeError: its library is missing.

    """
    return KERNELS[name]()
