"""An unquantized checkpoint for transformers: safetensors shards, config.json, tokenizer, card."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.errors import CheckpointError
from quantkit.core.files import read_if_there
from quantkit.encodings.encoding import Encoding
from quantkit.families.model import Decoder
from quantkit.families.published import published_names
from quantkit.formats.floats import Plain
from quantkit.formats.folder import (
    FolderLayout,
    FolderPlan,
    StoredMatrix,
    StoredTarget,
    carried_files,
    lay_out_folder,
)
from quantkit.planning.quants import Quant


def lay_out_plain(
    checkpoint: Checkpoint,
    model: Decoder,
    name: str,
    *,
    card: str | None = None,
    recipe: Mapping[str, Any],
    shard_size: int | None = None,
) -> FolderLayout:
    """The folder that holds a checkpoint's tensors as they are, under published names.

    Args:
        checkpoint: the tensors, config.json and, in its folder, tokenizer and side files.
        model: the checkpoint's.
        name: of the folder.
        card: README.md, instead of the checkpoint's own.
        recipe: whatever else the bytes depend on, so that a resumed run is of the same.
        shard_size: the most bytes of tensors per shard.

    Raises:
        PlanError: a matrix is larger than a shard.

    """
    tensors = []
    for target in model.targets:
        matrices = []
        for block, published in zip(target.blocks, published_names(target), strict=True):
            codec = Plain(checkpoint.tensors[block.source].dtype)
            shape = target.shape[-2:]
            parts = codec.parts(published, shape)
            matrices.append(StoredMatrix(published, shape, codec, parts))
        if matrices:
            tensors.append(StoredTarget(target, matrices[0].codec.encoding, tuple(matrices)))
    files = {
        "config.json": (json.dumps(checkpoint.config, indent=2) + "\n").encode(),
        **carried_files(checkpoint.path),
    }
    own_card = checkpoint.path / "README.md"
    if card is not None:
        files["README.md"] = card.encode()
    elif (own := read_if_there(own_card, error=CheckpointError)) is not None:
        files["README.md"] = own
    quant = Quant("unquantized", "plain", -1, Encoding("unquantized", -1, 1, 0), (), "")
    layout = lay_out_folder(FolderPlan(quant, tuple(tensors)), name, files, {}, shard_size)
    digest = hashlib.sha256(json.dumps([layout.digest, recipe], sort_keys=True).encode())
    return replace(layout, digest=digest.hexdigest())
