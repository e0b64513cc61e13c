"""Shards, whole and byte for byte, against ``llama-gguf-split`` of ``llama-quantize``'s file."""

from pathlib import Path

import pytest

from quantkit.checkpoint.gguf import read_header
from quantkit.core.errors import PlanError
from tests import native_tools
from tests.parity.both_ways import Source, convert
from tests.parity.cases import Case, random
from tests.parity.compare import assert_same_file

pytestmark = pytest.mark.native

CASES: dict[str, Case] = {
    "mixtral": random("mixtral", intermediate_size=256, shards=2),
    # As f32, output.weight, output_norm.weight and token_embd.weight make 2,000,000 bytes.
    "mistral": random(
        "mistral", hidden_size=32, intermediate_size=64, num_hidden_layers=3, vocab_size=7812
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    return convert(tmp_path_factory.mktemp("splits"), CASES)


@pytest.mark.parametrize(
    ("name", "quants", "megabytes"),
    [
        ("mixtral", ["q8_0", "q5_k_m", "q2_k"], 1),
        ("mixtral", ["bf16", "q8_0"], 2),
        ("mixtral", ["f32"], 3),
        ("mistral", ["f32", "f16"], 1),
        ("mistral", ["f32"], 2),
    ],
)
def test_every_shard_is_llama_gguf_splits(
    sources: dict[str, Source], name: str, quants: list[str], megabytes: int, tmp_path: Path
) -> None:
    source, whole = sources[name], tmp_path / "whole.gguf"
    built = source.build(quants, tmp_path / "ours", shard_size=megabytes * 10**6)
    for quant in quants:
        native_tools.quantize(source.converted, whole, quant)
        theirs = native_tools.split(whole, tmp_path / "theirs", f"{megabytes}M")
        ours = sorted(built[quant].parent.iterdir())
        assert ours[0] == built[quant]
        base = ours[0].parent.name
        assert [file.name for file in ours] == [
            f"{base}-{n:05}-of-{len(theirs):05}.gguf" for n in range(1, len(theirs) + 1)
        ]
        assert len(ours) > 1
        for file, other in zip(ours, theirs, strict=True):
            assert_same_file(file, other)


def test_a_shard_may_be_just_full(sources: dict[str, Source], tmp_path: Path) -> None:
    for size, tensors in ((2_000_000, 3), (1_999_999, 2)):
        out = tmp_path / str(size)
        first = sources["mistral"].build(["f32"], out, shard_size=size)["f32"]
        assert len(read_header(first).tensors) == tensors


def test_what_fits_in_one_file_is_not_split(sources: dict[str, Source], tmp_path: Path) -> None:
    built = sources["mixtral"].build(["q4_0"], tmp_path / "ours", shard_size=10**7)
    whole = tmp_path / "whole.gguf"
    native_tools.quantize(sources["mixtral"].converted, whole, "q4_0")
    assert built["q4_0"].parent == tmp_path / "ours"
    assert_same_file(built["q4_0"], whole)


def test_a_tensor_larger_than_a_shard_is_refused(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    largest = 8 * 256 * 256 * 4  # all experts of a layer
    with pytest.raises(PlanError, match=f"ffn_.*_exps.weight .* --shard-size {largest}"):
        sources["mixtral"].build(["f32"], tmp_path, shard_size=largest - 1)
    assert sources["mixtral"].build(["f32"], tmp_path, shard_size=largest)["f32"].is_file()
