"""Hostile checkpoints that llama.cpp's converter describes: described, or refused in a sentence.

The converter is asked in a process of its own, here one for all cases.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.core.errors import QuantkitError
from tests.architectures.ggufs import make_checkpoint
from tests.checkpoint.converter.shared import one_converter
from tests.fuzz import mutations
from tests.fuzz.cases import _join_safetensors, _split_safetensors

pytestmark = pytest.mark.native

QUERY = "model.layers.0.self_attn.q_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
WEIGHTS = "model.safetensors"
_RANDOM_CASES = 12

Change = Callable[[Path], None]


def config(**entries: Any) -> Change:
    """Other entries in config.json."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return change


def text(name: str, content: str) -> Change:
    """Another file."""

    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def link(name: str, target: str) -> Change:
    """A link instead of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def tensor(name: str, shape: list[int] | None, dtype: str = "F32") -> Change:
    """One more tensor, another one, or, without a shape, none of this name."""

    def change(folder: Path) -> None:
        header, data = _split_safetensors(folder / WEIGHTS)
        kept = {n: entry for n, entry in header.items() if n not in (name, "__metadata__")}
        size = {"F32": 4, "I64": 8, "BOOL": 1, "C64": 8}[dtype]
        pieces, at = [], 0
        for entry in kept.values():
            begin, end = entry["data_offsets"]
            pieces.append(data[begin:end])
            entry["data_offsets"] = [at, at + end - begin]
            at += end - begin
        if shape is not None:
            n_bytes = int(np.prod(shape)) * size
            kept[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
            pieces.append(bytes(n_bytes))
        _join_safetensors(folder / WEIGHTS, kept, b"".join(pieces))

    return change


DEEP = "[" * 100_000 + "]" * 100_000
# What is wrong, and words of what is said of it; None where the converter takes it.
CASES: dict[str, tuple[Change, str | None]] = {
    "a billion layers": (config(num_hidden_layers=10**9), "there are 24 tensors"),
    "endless layers": (config(num_hidden_layers=float("inf")), "there are 24 tensors"),
    "minus one layer": (config(num_hidden_layers=-1), "cannot describe"),
    "layers in words": (config(num_hidden_layers="two"), "cannot describe"),
    "fewer layers than there are": (config(num_hidden_layers=1), "cannot describe"),
    "more layers than llama.cpp takes": (config(num_hidden_layers=513), "513"),
    "a billion tokens": (config(vocab_size=10**9), "no tensor has more than 512 rows"),
    "no token": (config(vocab_size=0), "cannot describe"),
    "rows of a trillion": (config(hidden_size=10**12), "cannot describe"),
    "heads below none": (config(num_key_value_heads=-1), "cannot describe"),
    "an endless context": (config(max_position_embeddings=10**12), "cannot describe"),
    "scaling that is none": (config(rope_scaling="y", rope_parameters="x"), "cannot describe"),
    "a name that no line holds": (config(architectures=["A\nB\x1b[2J"]), r"A\nB\x1b[2J"),
    "nobody's architecture": (config(architectures=["XForCausalLM"]), "--llama-cpp"),
    "quantized by five": (config(quantization_config=5), "cannot describe"),
    "nested config": (text("config.json", '{"architectures":["A"],"x":' + DEEP + "}"), "deeply"),
    "a tensor's name of two lines": (tensor("model.a\nb.weight", [4]), r"model.a\nb.weight"),
    "a matrix of no axes": (tensor(QUERY, []), "cannot describe"),
    "embeddings of no axes": (tensor(EMBEDDINGS, []), "cannot describe"),
    "five axes": (tensor(QUERY, [2, 2, 2, 2, 2]), "5 dimensions"),
    "no rows": (tensor(QUERY, [0, 256]), "no sound GGUF"),
    "complex numbers": (tensor(QUERY, [8, 8], "C64"), "stored as C64"),
    "layer a billion": (tensor(QUERY.replace("0", "1000000000"), [8, 8]), "cannot describe"),
    "a matrix too few": (tensor(QUERY, None), None),
    "a matrix of another shape": (tensor(QUERY, [3, 7]), None),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "half a tokenizer": (text("tokenizer.json", "{"), "tokenizer.json is not JSON"),
    "an empty tokenizer": (text("tokenizer.json", ""), "tokenizer.json is not JSON"),
    "a tokenizer in a list": (text("tokenizer.json", "[1]"), "tokenizer.json is not a JSON object"),
    "a tokenizer of nothing": (text("tokenizer.json", "{}"), "tokenizer.json cannot be used"),
    "a nested tokenizer": (text("tokenizer.json", DEEP), "tokenizer.json is nested too deeply"),
    "a tokenizer that is elsewhere": (
        link("tokenizer.json", "nowhere"),
        "tokenizer.json is a link",
    ),
    "a tokenizer in a circle": (link("tokenizer.json", "tokenizer.json"), "tokenizer.json cannot"),
    "settings that are a list": (text("tokenizer_config.json", "[1]"), "tokenizer_config.json is"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("foreign"))


def describe(folder: Path) -> str | None:
    """Describe a checkpoint and plan its quants; the sentence where that is refused."""
    from quantkit.building.work import prepare
    from quantkit.checkpoint.open import open_checkpoint
    from quantkit.planning.quants import find_quants

    try:
        prepare(open_checkpoint(folder), find_quants(["q4_k_m"]))
    except QuantkitError as refusal:
        return f"{refusal} (exit code {refusal.exit_code})"
    return None


def test_what_no_model_has_is_refused_in_a_sentence(sound: Path, tmp_path: Path) -> None:
    with one_converter():
        for number, (name, (change, words)) in enumerate(CASES.items()):
            folder = tmp_path / str(number)
            shutil.copytree(sound, folder)
            change(folder)
            said = describe(folder)
            if words is None:
                assert said is None, f"{name}: {said}"
            else:
                assert said is not None, name
                assert words in said, f"{name}: {said}"
                assert said.endswith("(exit code 2)"), name
                assert "Traceback" not in said


def test_damaged_files_of_a_foreign_checkpoint(sound: Path, tmp_path: Path) -> None:
    refused = 0
    with one_converter():
        for seed in range(_RANDOM_CASES):
            rng = random.Random(seed)
            folder = tmp_path / str(seed)
            shutil.copytree(sound, folder)
            name = rng.choice(["config.json", "config.json", "tokenizer.json", WEIGHTS])
            changes = [mutations.change_bytes, mutations.become_strange]
            changes += [mutations.change_json] * 6 if name.endswith(".json") else []
            rng.choice(changes)(folder / name, rng)
            refused += describe(folder) is not None
            shutil.rmtree(folder)
    assert _RANDOM_CASES / 8 < refused < _RANDOM_CASES  # neither all nor none
