"""Parameters of a model as float32 tensors, read and converted when they are needed."""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.mxfp4 import Packed
from quantkit.checkpoint.origins import Origin, find_origins
from quantkit.checkpoint.rows import open_rows
from quantkit.checkpoint.scaled import DTYPE, KIND, block_size, scale_of, scaled
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    KIND: DTYPE,
}
_ONLY_FLOATS = (
    "quantkit runs only floats, FP8 with its scales and gpt-oss's MXFP4 layer by layer; give the "
    "checkpoint that it was made from, or run its GGUF"
)
_READ_ROWS = 64 * 2**20  # bytes of embeddings read at once


class Parameters:
    """What a model's parameters are, in a checkpoint of any kind that has rows."""

    def __init__(
        self, checkpoint: Checkpoint, model: "PreTrainedModel", device: torch.device
    ) -> None:
        """Find out what is stored where. Reads no weights.

        Raises:
            CheckpointError: the tensors are not those of the model, or in a form that is not read.

        """
        self._model = model
        self._device = device
        self._tensors = checkpoint.tensors
        self._read_rows = open_rows(with_rows(checkpoint))
        self._wanted = model.state_dict()
        self._block = block_size(checkpoint.config)
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        self.origins: Mapping[str, Origin] = find_origins(model, shapes)
        is_here = checkpoint.repo is None or all(file.is_file() for file in checkpoint.files)
        self.are_at_hand = is_here and device.type == "cpu"
        self._place = checkpoint.repo.repo_id if checkpoint.repo else str(checkpoint.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape."""
        return tuple(self._wanted[name].shape)

    def require(self, names: Iterable[str]) -> None:
        """Refuse a checkpoint that lacks one of these, or has it in no plain form.

        Raises:
            CheckpointError: it does.

        """
        for name in names:
            if name not in self.origins:
                raise CheckpointError(
                    f"{self._place} lacks what {quoted(name)} is made of; download it again."
                )
            for stored in self.origins[name].stored:
                kind = self._tensors[stored].dtype
                is_scaled = kind == KIND and scale_of(stored, self._tensors) is not None
                is_packed = kind == "U8" and isinstance(self.origins[name].converter, Packed)
                if kind not in FLOAT_BYTES and not is_scaled and not is_packed:
                    raise CheckpointError(
                        f"{quoted(stored)} of {self._place} is stored as {kind}, and "
                        f"{_ONLY_FLOATS}."
                    )

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some parameters, whole.

        Raises:
            CheckpointError: one is missing, or cannot be read.

        """
        made: dict[str, Tensor] = {}
        for name in names:
            if name in made:
                continue
            self.require([name])
            origin = self.origins[name]
            converted = origin.convert(self._model, self._read)
            made |= converted
            if name not in converted:  # tied
                made[name] = converted[origin.first]
        return {name: made[name] for name in names}

    def has_rows(self, name: str) -> bool:
        """Whether a parameter is a plain tensor as it is stored.

        Raises:
            CheckpointError: it is missing.

        """
        self.require([name])
        origin = self.origins[name]
        return origin.converter is None and self._tensors[origin.stored[0]].dtype != KIND

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Some rows of a parameter that `has_rows`, in the type that they are stored in.

        Raises:
            CheckpointError: they cannot be read.

        """
        tensor = self._tensors[self.origins[name].stored[0]]
        raw = torch.from_numpy(self._read_rows(tensor.name, first, count))
        return raw.view(_DTYPES[tensor.dtype]).view(count, -1).to(self._device)

    def part(self, name: str, number: int, count: int) -> Tensor:
        """One of the matrices of a parameter that holds several, one per expert.

        What is stored of it alone is read, where that can be told.

        Args:
            name: of the parameter, whose matrices have an axis of their own or are one below the
                other.
            number: of the matrix.
            count: how many there are.

        Raises:
            CheckpointError: it is missing, or cannot be read.

        """
        origin = self.origins[name]
        wanted = self._wanted[name].shape
        shape = (wanted[0] // count, *wanted[1:])
        if all(len(names) == count for names in origin.sources.values()):
            if origin.stacks_rows:
                stored = [names[number] for names in origin.sources.values()]
                return self._one_below_the_other(stored, (shape[-2], shape[-1]))
            made = origin.convert(self._model, self._read, lambda names: (names[number],))
        elif all(self._is_in_parts(stored, wanted[0], count) for stored in origin.stored):
            made = origin.convert(self._model, lambda stored: self._read(stored, number, count))
        else:
            made = {}
        if name in made and made[name].shape == shape:
            matrix = made[name]
        else:
            matrix = self.load([name])[name].view(count, *shape)[number]
        return matrix if len(wanted) == 2 else matrix[0]

    def _is_in_parts(self, stored: str, length: int, count: int) -> bool:
        """Whether each matrix is a part of a tensor's first axis."""
        tensor = self._tensors[stored]
        return tensor.shape[0] == length and (length == count or tensor.dtype != KIND)

    def _one_below_the_other(self, names: Sequence[str], shape: tuple[int, int]) -> Tensor:
        """Stored matrices as one, with nothing beside it in memory but one as it is stored."""
        whole = torch.empty(shape, dtype=torch.float32, device=self._device)
        row = 0
        for name in names:
            rows = self._tensors[name].shape[0]
            whole[row : row + rows] = self._read(name, as_stored=True)
            row += rows
        return whole

    def table(self, name: str, used: NDArray[np.int64]) -> Tensor:
        """A matrix of which only some rows are asked for, as embeddings are.

        Pages of the others are never touched, and take no memory.

        Raises:
            CheckpointError: it is missing, or cannot be read.

        """
        self.require([name])
        origin = self.origins[name]
        if origin.converter is not None:
            return self.load([name])[name]
        source = self._tensors[origin.stored[0]]
        table = _zeros((source.shape[0], source.shape[1]))
        step = max(1, _READ_ROWS // source.row_bytes)
        for first in range(0, source.shape[0], step):
            count = min(step, source.shape[0] - first)
            here = used[(used >= first) & (used < first + count)]
            if here.size:
                raw = torch.from_numpy(self._read_rows(source.name, first, count))
                rows = raw.view(_DTYPES[source.dtype]).view(count, -1)
                table[here] = rows[torch.from_numpy(here - first)].float().numpy()
        return torch.from_numpy(table).to(self._device)

    def _read(self, name: str, part: int = 0, parts: int = 1, *, as_stored: bool = False) -> Tensor:
        """A stored tensor, or one of equal parts of its first axis; ``as_stored`` not widened."""
        tensor = self._tensors[name]
        shape = (tensor.shape[0] // parts, *tensor.shape[1:]) if tensor.shape else ()
        count = prod(tensor.shape[:-1]) // parts
        raw = torch.from_numpy(self._read_rows(name, part * count, count))
        values = raw.view(_DTYPES[tensor.dtype]).to(self._device).view(shape)
        if tensor.dtype == "U8":
            return values
        if tensor.dtype != KIND:
            return values if as_stored else values.float()
        values = values.float()
        scale = scale_of(name, self._tensors)
        assert scale is not None  # noqa: S101 - `require` has seen it
        try:
            return scaled(values, self._read(scale, part, parts), self._block)
        except ValueError as error:
            raise CheckpointError(
                f"{quoted(scale)} of {self._place} does not fit what it scales: {error}; download "
                "the checkpoint again."
            ) from None


def _zeros(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Zeros of which a page takes memory once it is written to; numpy would ask for huge pages."""
    memory = mmap.mmap(-1, max(1, prod(shape) * 4))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # of a kernel that has none
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32, prod(shape)).reshape(shape)


def stored_names(parts: Mapping[str, nn.Module]) -> list[str]:
    """The names of what modules themselves hold and a checkpoint stores."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in parts.items()
        for name in (*module._parameters, *module._buffers)
        if name not in module._non_persistent_buffers_set
        and (module._parameters.get(name) is not None or module._buffers.get(name) is not None)
    ]


def fill(parts: Mapping[str, nn.Module], values: Mapping[str, Tensor]) -> None:
    """Put parameters into modules."""
    for prefix, module in parts.items():
        for held in (module._parameters, module._buffers):
            for name in held:
                full = f"{prefix}.{name}" if prefix else name
                if full in values:
                    old = held[name]
                    assert old is not None  # noqa: S101 - it has a name
                    value = values[full].to(old.dtype)
                    is_parameter = held is module._parameters
                    held[name] = nn.Parameter(value, requires_grad=False) if is_parameter else value


def empty(parts: Mapping[str, nn.Module]) -> None:
    """Take out again what `fill` put in."""
    for module in parts.values():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and name not in module._non_persistent_buffers_set:
                    meta = torch.empty_like(value, device="meta")
                    is_parameter = held is module._parameters
                    held[name] = nn.Parameter(meta, requires_grad=False) if is_parameter else meta
