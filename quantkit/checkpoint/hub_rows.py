"""Rows of a checkpoint on the Hub, by range requests: nothing else of its weights is downloaded."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.remote import read_range
from quantkit.checkpoint.rows import read_stored


def with_rows(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that `open_hub_checkpoint` opened, with a way to its rows.

    Raises:
        CheckpointError: by the function, the Hub cannot be reached.

    """
    repo = checkpoint.repo
    if repo is None or (checkpoint.description is not None and checkpoint.read_rows is not None):
        return checkpoint  # of what is computed, the rows know where the files are
    if all(file.is_file() for file in checkpoint.files):
        return checkpoint

    def read_rows(name: str, first: int, count: int) -> NDArray[np.uint8]:
        tensor = checkpoint.tensors[name]
        if tensor.file.is_file():
            return read_stored(tensor, first, count)
        start = tensor.offset + first * tensor.row_bytes
        data = read_range(repo, tensor.file.name, start, start + count * tensor.row_bytes)
        return np.frombuffer(bytearray(data), np.uint8)

    return replace(checkpoint, read_rows=read_rows)
