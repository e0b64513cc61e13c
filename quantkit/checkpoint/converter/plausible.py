"""Numbers of a config.json that no model can have, before a converter counts up to them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor

# What the converter makes tables of, one entry for each (``find_hparam`` in its ``base.py``).
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "depth", "encoder_layers")
_ROWS = ("vocab_size",)
# Up to here they may contradict the tensors: what llama.cpp and our reader of headers take at most.
_FEW_LAYERS, _FEW_ROWS = 512, 2**21


def require_plausible(
    config: Mapping[str, Any], tensors: Mapping[str, SourceTensor], path: Path
) -> None:
    """Check that there are not far more layers than tensors, nor more tokens than rows.

    Raises:
        CheckpointError: there are.

    """
    most_rows = max((max(t.shape, default=1) for t in tensors.values()), default=1)
    for names, few, most, what in (
        (_LAYERS, _FEW_LAYERS, len(tensors), "there are {:,} tensors"),
        (_ROWS, _FEW_ROWS, most_rows, "no tensor has more than {:,} rows"),
    ):
        for name, number in _numbers(config, names):
            if abs(number) > max(few, most):
                raise CheckpointError(
                    f"{path / 'config.json'} says {name} = {quoted(number)}, but "
                    f"{what.format(most)}; copy config.json and weights of one model."
                )


def _numbers(config: Any, names: tuple[str, ...], depth: int = 3) -> Iterator[tuple[str, float]]:
    """Numbers of these names in a config, and in the parts of it."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if key in names and isinstance(value, int | float) and value == value:
            yield key, value
        elif depth and isinstance(value, Mapping):
            yield from _numbers(value, names, depth - 1)
