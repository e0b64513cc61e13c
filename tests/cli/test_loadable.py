"""What llama.cpp would not load is refused before a weight is read: by its header alone."""

import struct
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.architectures.ggufs import small_ggufs
from tests.cli.command import quantkit, refusal
from tests.gguf_sources import unquantized
from tests.large_experts import large_experts

pytestmark = pytest.mark.usefixtures("shared_converter")

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
WEIGHTS = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a norm that llama.cpp wants, which the converter does not miss."""
    folder = large_experts(
        tmp_path_factory.mktemp("lacking") / "model", hidden=256, width=256, experts=4
    )
    (folder / "model.safetensors.index.json").unlink()
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.self_attn.q_norm.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("option", ["--dry-run", "--no-smoke"])
def test_a_missing_tensor(option: str, folder: Path, tmp_path: Path) -> None:
    said = refusal(quantkit("build", folder, "-q", "q8_0", "-o", tmp_path / "out", option))
    assert "llama.cpp does not load" in said
    assert "blk.0.attn_q_norm.weight" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--dry-run", "--no-smoke"])
def test_metadata_of_a_gguf(option: str, tmp_path: Path) -> None:
    """Heads of 64 numbers, of which all are turned, in a file that says 6."""
    source = unquantized(TINY, tmp_path / "source", name="Tiny")
    key = b"llama.rope.dimension_count"
    raw = source.read_bytes()
    was, now = (key + struct.pack("<II", 4, number) for number in (64, 6))  # 4: uint32
    assert raw.count(was) == 1
    source.write_bytes(raw.replace(was, now))

    said = refusal(quantkit("build", source, "-q", "q8_0", "-o", tmp_path / "out", option))

    assert said.startswith(f"{source} would become a GGUF that llama.cpp does not load (error ")
    assert "invalid n_rot: 6, expected 64" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.native
def test_a_gguf_that_llama_cpp_aborts_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = small_ggufs(tmp_path_factory, ["glm-dsa"])["glm-dsa"]

    said = refusal(quantkit("build", source, "-q", "q8_0", "-o", tmp_path / "out"))

    assert "(llama.cpp crashed with SIGABRT while starting (GGML_ASSERT(ggml_can_mul_mat" in said
    assert not (tmp_path / "out").exists()
