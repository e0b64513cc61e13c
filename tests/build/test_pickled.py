"""Checkpoints whose weights torch.save wrote: quants are those of the same weights elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantkit.checkpoint.names import PICKLE_INDEX
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CheckpointError
from tests.build.builds import build
from tests.parity.cases import TRAINED

MISTRAL = TRAINED / "tiny-mistral"
INDEX = "model.safetensors.index.json"


def pickled(folder: Path, files: int = 1, *, tied: bool = False) -> Path:
    """tiny-mistral as torch.save stores it, with buffers that old tools stored as well."""
    small = shutil.ignore_patterns("*.safetensors", INDEX)
    shutil.copytree(MISTRAL, folder, ignore=small)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(MISTRAL.glob("*.safetensors")):
        state |= load_file(file)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    state["model.layers.0.attention.bias"] = torch.ones(4, 4, dtype=torch.bool)
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for place, name in enumerate(state):
        weight_map[name] = f"pytorch_model-{place % files + 1:05}-of-{files:05}.bin"
    for file_name in set(weight_map.values()):
        part = {name: state[name] for name, file in weight_map.items() if file == file_name}
        torch.save(part, folder / file_name)
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("files", [1, 3])
def test_the_bytes_are_those_of_safetensors(tmp_path: Path, files: int) -> None:
    source = pickled(tmp_path / "tiny-mistral", files)
    found = build(source, tmp_path / "found", "q4_k_m", "bnb-nf4", check=None)
    expected = build(MISTRAL, tmp_path / "expected", "q4_k_m", "bnb-nf4", check=None)
    for ours, theirs in zip(found, expected, strict=True):
        weights = "" if ours.path.is_file() else "model.safetensors"
        assert (ours.path / weights).read_bytes() == (theirs.path / weights).read_bytes()


def test_tensors_that_share_their_bytes_are_read_twice(tmp_path: Path) -> None:
    """A tied output is the embedding's storage; the file's sha256 is its own nevertheless."""
    import hashlib

    source = pickled(tmp_path / "tiny-mistral", tied=True)
    [made] = build(source, tmp_path / "out", "f16", check=None)
    [weights] = made.entry["source"]["weights"]
    data = (source / "pytorch_model.bin").read_bytes()
    assert weights["sha256"] == hashlib.sha256(data).hexdigest()
    tensors = open_checkpoint(source).tensors
    embedding, output = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    assert embedding.offset == output.offset
    written = made.path.read_bytes()
    half = torch.frombuffer(
        bytearray(data[output.offset :][: output.n_bytes]), dtype=torch.bfloat16
    )
    assert written.count(half.half().numpy().tobytes()) == 2


def test_safetensors_are_read_where_both_are_there(tmp_path: Path) -> None:
    both = pickled(tmp_path / "tiny-mistral")
    for file in MISTRAL.glob("model*"):
        shutil.copyfile(file, both / file.name)
    (both / "pytorch_model.bin").write_bytes(b"not read")
    assert all(file.suffix == ".safetensors" for file in open_checkpoint(both).files)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    source = pickled(tmp_path / "tiny-mistral", 3)
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 3 weight files.*00002-of-00003"):
        open_checkpoint(source)
