"""Weights of a checkpoint as float32 tensors, read when they are needed and never before."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.rows import open_rows
from quantkit.families.model import Block, Decoder, Target

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_READ_ROWS = 64 * 2**20  # bytes of embeddings read at once


class Weights:
    """A model's weights by layer and role, in transformers' row order (nothing interleaved)."""

    def __init__(self, checkpoint: Checkpoint, model: Decoder, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._sources = checkpoint.tensors
        self._read_rows = open_rows(with_rows(checkpoint))
        self._targets = {(target.layer, target.role): target for target in model.targets}

    def target(self, layer: int | None, role: str) -> Target:
        """The tensor with a role; KeyError where the model has none."""
        return self._targets[layer, role]

    def matrix(self, layer: int | None, role: str, expert: int | None = None) -> Tensor:
        """One weight matrix, shape (rows, columns), or a norm's vector as one row.

        Raises:
            CheckpointError: its file cannot be read.

        """
        block = self.target(layer, role).blocks[expert or 0]
        source = self._sources[block.source]
        return self.widen(self.raw(block), source.dtype).view(block.rows, source.shape[-1])

    def dtype(self, layer: int | None, role: str) -> str:
        """What a role is stored in, by safetensors' name."""
        return self._sources[self.target(layer, role).blocks[0].source].dtype

    def widen(self, raw: NDArray[np.uint8], dtype: str) -> Tensor:
        """Stored floats as float32 on the device, 1-D."""
        return torch.from_numpy(raw).view(_DTYPES[dtype]).to(self.device).float()

    def vector(self, layer: int | None, role: str) -> Tensor | None:
        """A norm or a bias, 1-D; None where the model has none."""
        if (layer, role) not in self._targets:
            return None
        return self.matrix(layer, role).view(-1)

    def source_names(self, layer: int | None, role: str) -> list[str]:
        """The names in the checkpoint of the tensors that a role is made of."""
        return [block.source for block in self.target(layer, role).blocks]

    def raw(self, block: Block) -> NDArray[np.uint8]:
        """The bytes of some rows of a source, 1-D."""
        first = block.row
        if block.matrix is not None:
            first += block.matrix * self._sources[block.source].shape[1]
        return self._read_rows(block.source, first, block.rows)

    def embed(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings of token ids, float32, shape ``(*tokens.shape, hidden)``."""
        source = self._sources[self.target(None, "token_embd").blocks[0].source]
        out = np.empty((tokens.size, source.shape[1]), np.float32)
        flat = tokens.reshape(-1)
        step = max(1, _READ_ROWS // source.row_bytes)
        for first in range(0, source.shape[0], step):
            rows = min(step, source.shape[0] - first)
            here = np.flatnonzero((flat >= first) & (flat < first + rows))
            if here.size:
                raw = torch.from_numpy(self._read_rows(source.name, first, rows))
                table = raw.view(_DTYPES[source.dtype]).view(rows, -1)
                out[here] = table[torch.from_numpy(flat[here] - first)].float().numpy()
        return out.reshape(*tokens.shape, -1)
