"""A checkpoint's first layers as a checkpoint: all that it does, in less of it.

Nothing of its weights is copied: it is a view, with a config.json of its own.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.converter.small_files import link_into
from quantkit.checkpoint.text_config import TEXT_PARTS, text_config
from quantkit.core.writing import write_file

_IN_A_LAYER = re.compile(r"(?:^|.*\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PERIODIC = re.compile(r"_(pattern|interval|period|every_n_layers|step|freq)$")
# Layers that predict further tokens follow those that are counted.
_PREDICTORS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")


def count_layers(checkpoint: Checkpoint) -> int:
    """How many layers config.json gives the text part; 0 where it does not say."""
    config = text_config(checkpoint.config)
    return next((value for key in _COUNTS if isinstance(value := config.get(key), int)), 0)


def layer_of(name: str) -> int | None:
    """The layer that a stored tensor belongs to, by its name; None for one outside the layers."""
    found = _IN_A_LAYER.fullmatch(name)
    return int(found[1]) if found else None


def fewest_layers(checkpoint: Checkpoint) -> int:
    """The fewest first layers among which is one of each kind.

    Layers are of one kind when their tensors have the same names and shapes and every list in
    config.json that has an entry per layer has the same for both. Where config.json says instead
    that each so-manieth layer is of another kind, so many are wanted.

    Args:
        checkpoint: with its tensors as they are stored.

    """
    count = count_layers(checkpoint)
    config = text_config(checkpoint.config)
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == count]
    holds: dict[int, set[tuple[str, tuple[int, ...]]]] = defaultdict(set)
    for name, tensor in checkpoint.tensors.items():
        if found := _IN_A_LAYER.fullmatch(name):
            holds[int(found[1])].add((found[2], tensor.shape))
    seen = set()
    fewest = max(1, *(_every(key, value) for key, value in config.items()))
    for layer in range(count):
        kind = (frozenset(holds[layer]), *(repr(values[layer]) for values in lists))
        if kind not in seen:
            seen.add(kind)
            fewest = max(fewest, layer + 1)
    return min(fewest, count) or 1


def _every(key: str, value: Any) -> int:
    """How many layers a pattern of config.json spans: ``sliding_window_pattern`` and its like."""
    return value if _PERIODIC.search(key) and isinstance(value, int) else 1


def shortened(checkpoint: Checkpoint, layers: int, folder: Path) -> Checkpoint:
    """The first layers of a checkpoint, with what stands before and after them.

    Args:
        checkpoint: with its tensors as they are stored.
        layers: how many.
        folder: a new one, for its small files.

    Raises:
        CheckpointError: a small file cannot be read.

    """
    count = count_layers(checkpoint)
    config = _shortened_config(checkpoint.config, count, layers)
    link_into(folder, checkpoint.path)
    (folder / "config.json").unlink(missing_ok=True)  # a link
    write_file(folder / "config.json", json.dumps(config, indent=2).encode())
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if (layer := layer_of(name)) is None or layer < layers
    }
    return replace(checkpoint, path=folder, config=config, tensors=tensors)


def _shortened_config(config: Mapping[str, Any], count: int, layers: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key in TEXT_PARTS and isinstance(value, Mapping):
            made[key] = _shortened_config(value, count, layers)
        elif key in _COUNTS and value == count:
            made[key] = layers
        elif key in _PREDICTORS:
            made[key] = 0
        elif isinstance(value, list) and len(value) == count:
            made[key] = value[:layers]
        else:
            made[key] = value
    return made
