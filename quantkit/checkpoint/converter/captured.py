"""What the converter reads from and writes to in its process: leaves, and what it captures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from conversion.base import LazyTorchTensor

from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.confined import RefusedError
from quantkit.checkpoint.converter.nodes import Leaf

# What may be read while a model is described: a value, a scale, a list of ids. A converter that
# looks at more is refused by name.
_SMALL_READ = 16 * 2**20


_SMALL_IN_ALL = 256 * 2**20


LazyTorchTensor._dtype_map.setdefault(torch.int32, np.int32)


@dataclass(frozen=True, slots=True)
class Captured:
    """A tensor that the converter hands to its writer: its numbers, and the type it would have."""

    name: str
    data: Any
    stored: str
    shape: tuple[int, ...]


@dataclass
class StoredTensors:
    """The checkpoint's tensors, which the parent reads."""

    channel: Channel
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    is_described: bool = False
    n_read: int = 0
    n_small: int = 0
    looked_at: list[str] = field(default_factory=list)

    def read(self, name: str, first: int, count: int, *, bounded: bool = True) -> torch.Tensor:
        """Rows of a tensor along its first axis; ``bounded``: refused where that is much."""
        dtype, shape = self.tensors[name]
        kind = LazyTorchTensor._dtype_str_map[dtype]
        size = count * prod(shape[1:]) * kind.itemsize
        if not self.is_described:
            self.n_read += size
            self.n_small += size if bounded else 0
            if bounded and (size > _SMALL_READ or self.n_small > _SMALL_IN_ALL):
                raise RefusedError(
                    f"it reads the {size:,} bytes of {name} while it describes, which quantkit "
                    "does not let it"
                )
            if name not in self.looked_at:
                self.looked_at.append(name)
        self.channel.send({"read": name, "first": first, "count": count})
        _, data = self.channel.receive()
        if len(data) != size:
            raise RefusedError(f"{name} could not be read")
        if not size:
            return torch.empty((count, *shape[1:]) if shape else (), dtype=kind)
        return (
            torch.frombuffer(data, dtype=torch.uint8)
            .view(kind)
            .reshape((count, *shape[1:]) if shape else ())
        )

    def lazy(self, name: str) -> Any:
        """A tensor as the converter's lazy one."""
        dtype, shape = self.tensors[name]
        meta = LazyTorchTensor.meta_with_dtype_and_shape(
            LazyTorchTensor._dtype_str_map[dtype], shape
        )
        return LazyTorchTensor(meta=meta, args=(Leaf(name, shape, self.read),), func=Leaf.load)

    def pre_tokenizer(self) -> str:
        """What the parent calls the tokenizer's way to split text."""
        self.channel.send({"pre": True})
        answer, _ = self.channel.receive()
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return str(answer["pre"])
