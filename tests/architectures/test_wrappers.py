"""A projector has the numbers of its tower: every one, and no other."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.architectures.gguf_tensors import Tensors
from tests.architectures.ggufs import stored_checkpoints, stored_ggufs
from tests.architectures.stored import STORED
from tests.architectures.unpack import read_safetensors

pytestmark = pytest.mark.search  # of the tests' own material, by hand

WITH_PROJECTOR = [name for name, stored in STORED.items() if stored.projector]
TEXT = re.compile(r"language_model\.|text_model|^lm_head|^mtp\.|^model\.(layers|embed_tokens|norm)")
# Ones that the converter computes.
CHANGED = re.compile(r"soft_emb_norm|per_dim_scale")
PROJECTORS = {
    "gemma3-vision": "gemma3",
    "gemma4-vision": "gemma4v",
    "qwen25vl": "qwen2.5vl_merger",
    "qwen3vl": "qwen3vl_merger",
    "qwen3vlmoe": "qwen3vl_merger",
    "qwen35-vision": "qwen3vl_merger",
    "qwen35moe-vision": "qwen3vl_merger",
    "mistral3-vision": "pixtral",
    "llama4-vision": "llama4",
    "smolvlm": "idefics3",
    "internvl": "internvl",
    "qwen2-audio": "qwen2a",
    "voxtral": "voxtral",
}


@pytest.mark.parametrize("name", WITH_PROJECTOR)
def test_projector_has_the_numbers_of_the_tower(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = read_safetensors(stored_checkpoints(tmp_path_factory)[name] / "model.safetensors")
    gguf = Tensors(stored_ggufs(tmp_path_factory, WITH_PROJECTOR, "f32", mmproj=True)[name])

    tower = {tensor: values for tensor, values in source.items() if not TEXT.search(tensor)}
    changed = sum(values.size for tensor, values in tower.items() if CHANGED.search(tensor))
    written = [gguf.values(tensor) for tensor in gguf.tensors]

    assert gguf.keys["general.type"] == "mmproj"
    assert PROJECTORS[name] in (
        gguf.keys.get("clip.projector_type"),
        gguf.keys.get("clip.vision.projector_type"),
    )
    assert sum(values.size for values in written) == sum(values.size for values in tower.values())
    assert n_in_one_only(list(tower.values()), written) <= changed


def n_in_one_only(ours: list[NDArray[Any]], theirs: list[NDArray[Any]]) -> int:
    """How many numbers of one list the other has not, each counted as often as it occurs.

    Rounded to 16 bits, as the converter does it to some.
    """
    both = [np.concatenate([np.ravel(part) for part in side]) for side in (ours, theirs)]
    rounded = [side.astype(np.float16).astype(np.float32) for side in both]
    counts = [dict(zip(*np.unique(side, return_counts=True), strict=True)) for side in rounded]
    return sum(max(0, n - counts[1].get(value, 0)) for value, n in counts[0].items())
