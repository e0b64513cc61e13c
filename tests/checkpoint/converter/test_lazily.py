"""What stands in for steps of the converter that look at large tensors gives what they give."""

import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.checkpoint.converter.provision import find_converter
from quantkit.checkpoint.open import open_checkpoint
from tests.architectures.gguf_tensors import Tensors
from tests.architectures.ggufs import stored_checkpoints, stored_ggufs

pytestmark = pytest.mark.native

APART = Path(__file__).with_name("lazily_apart.py")
ROOT = Path(__file__).parents[3]


def test_stand_ins_give_what_the_converters_own_steps_give() -> None:
    converter = find_converter()

    done = subprocess.run(
        [sys.executable, "-P", APART, converter.tree, converter.packages, ROOT],
        capture_output=True,
        text=True,
        timeout=300,  # time: one that hangs ends
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 6


def test_experts_of_deepseek_v4_are_the_converters_and_none_is_read_to_describe_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    theirs = Tensors(stored_ggufs(tmp_path_factory, ["deepseek-v4"])["deepseek-v4"])

    checkpoint = open_checkpoint(
        stored_checkpoints(tmp_path_factory, ["deepseek-v4"])["deepseek-v4"]
    )

    description = checkpoint.description
    assert description is not None
    experts = [t for t in description.targets if t.name.endswith("_exps.weight")]
    assert len(experts) == 6
    for target in experts:
        matrices, rows, _ = target.shape
        found = [
            description.rows.rows(target.name, matrix * rows, rows, description.rows.read)
            for matrix in range(matrices)
        ]
        assert target.stored == theirs.kind(target.name) == "MXFP4"
        assert b"".join(part.tobytes() for part in found) == theirs.bits(target.name).tobytes()
    n_experts = sum(tensor.n_bytes for name, tensor in checkpoint.tensors.items() if "exps" in name)
    assert description.n_read < n_experts / 10
