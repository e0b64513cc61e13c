"""Importance matrices of checkpoints whose weights are random, too."""

from math import prod
from pathlib import Path

import numpy as np

from quantkit.building.work import prepare
from quantkit.core.errors import ImatrixError
from quantkit.planning.names import category_of, may_be_quantized
from quantkit.planning.quants import Quant, find_quants
from tests.imatrix_writer import write_gguf_imatrix

_NOT_SEEN = ("output", "token_embd")  # by llama-imatrix, unless it is asked to


def imatrix_for(checkpoint: Path, quants: tuple[Quant, ...], file: Path) -> Path | None:
    """Write an importance matrix of random values, if some quant cannot go without one."""
    try:
        prepare(checkpoint, quants)
    except ImatrixError:
        return _random_imatrix(checkpoint, file)
    return None


def _random_imatrix(checkpoint: Path, file: Path) -> Path:
    model = prepare(checkpoint, find_quants(["bf16"])).model
    rng = np.random.default_rng(0)
    entries = {}
    for target in model.targets:
        if may_be_quantized(target, model.arch) and category_of(target.name) not in _NOT_SEEN:
            matrices = prod(target.shape[:-2])
            sums = rng.lognormal(0, 1, (matrices, target.columns))
            entries[target.name] = sums, np.ones(matrices)
    return write_gguf_imatrix(file, entries)
