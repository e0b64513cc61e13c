"""Whole files, byte for byte, against ``convert_hf_to_gguf.py`` and ``llama-quantize``.

No key may differ, but for those that a case lists with the reason: there the original is the model,
not the converter.
"""

from pathlib import Path

import pytest

from tests import native_tools
from tests.parity.both_ways import ALL_QUANTS, PLAIN_QUANTS, Source, convert
from tests.parity.cases import CASES
from tests.parity.compare import assert_same_file

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    return convert(tmp_path_factory.mktemp("parity"), CASES)


# Their rows are no multiple of q1_0's 128, and llama-quantize gives up.
NOT_OF_128 = {
    "mixtral_4_experts_16_layers",
    "mixtral ragged",
    "mistral-32-layers-v2",
    "llama-80-layers-70B",
    "llama-odd",
    "llama-byte-level",
}
# Nor of Q8_0's 32, which a variant asks for: llama-quantize stops.
NOT_OF_32 = {"llama-odd"}


@pytest.mark.parametrize("name", CASES)
def test_every_byte_of_every_quant(sources: dict[str, Source], name: str, tmp_path: Path) -> None:
    quants = ALL_QUANTS if CASES[name].short else PLAIN_QUANTS
    left_out = {"q1_0"} if name in NOT_OF_128 else set()
    if name in NOT_OF_32:
        left_out |= native_tools.VARIANTS.keys()
    sources[name].compare([quant for quant in quants if quant not in left_out], tmp_path)


# llama-quantize counts the attn_v and ffn tensors as it goes, but not those that an override takes
# from it: an override moves the types of the layers after it.
OVERRIDES: dict[str, list[str]] = {
    "one kind": ["attn_v=q8_0"],
    "first layers": [r"blk\.[0-4]\.attn_v=q5_0", r"blk\.(0|2)\.ffn_down=q6_K"],
    "first match wins": [r"blk\.3\.=Q4_1", "BLK.*Ffn_(Gate|Up)=iq4_nl", "blk=q8_0"],
    "both ends": ["token_embd=f16", "^output=bf16", "attn_k=F32"],
    "norms are never touched": ["attn_(norm|q)=q3_k"],
    "rare kinds": [
        "attn_q=mxfp4", "attn_k=tq1_0", "ffn_up=tq2_0", "ffn_gate=nvfp4", "attn_v=q1_0",
    ],
}  # fmt: skip


@pytest.mark.parametrize("texts", OVERRIDES.values(), ids=OVERRIDES)
@pytest.mark.parametrize("name", ["mistral-16-layers-1B", "mixtral_4_experts_16_layers"])
def test_overrides(sources: dict[str, Source], name: str, texts: list[str], tmp_path: Path) -> None:
    quants = ["f16", "q4_k_m", "q4_k_s", "q3_k_m"]
    sources[name].compare(quants, tmp_path, tensor_types=texts)


@pytest.mark.parametrize("texts", [["attn=q4_k", "ffn=iq3_s"], ["ffn_down=q6_k", "blk=q5_k"]])
@pytest.mark.parametrize("name", ["mixtral ragged", "llama-odd"])
def test_overrides_that_do_not_fit_the_rows(
    sources: dict[str, Source], name: str, texts: list[str], tmp_path: Path
) -> None:
    sources[name].compare(["q3_k_s"], tmp_path, tensor_types=texts)


def test_embeddings_below_3_bits_without_an_imatrix(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    """Only these two tensors may go without one."""
    texts = ["token_embd=iq2_s", "^output=iq3_xxs"]
    sources["llama-tied-with-head"].compare(["q4_0"], tmp_path, tensor_types=texts)


def test_a_given_name(sources: dict[str, Source], tmp_path: Path) -> None:
    """``--name`` does what the converter's ``--model-name`` does."""
    checkpoint, given = sources["llama-odd"].checkpoint, "Some Model 7B v3"
    assert isinstance(checkpoint, Path)
    converted, theirs = tmp_path / "converted.gguf", tmp_path / "theirs.gguf"
    options = ["--outfile", str(converted), "--outtype", "bf16", "--model-name", given]
    native_tools.run(
        [native_tools.PYTHON, native_tools.CONVERTER, checkpoint, *options], makes=converted
    )
    native_tools.quantize(converted, theirs, "q4_0")
    artifacts = sources["llama-odd"].build(["q4_0"], tmp_path / "ours", name=given)
    assert artifacts["q4_0"].name == "Some-Model-7B-v3-Q4_0.gguf"
    assert_same_file(artifacts["q4_0"], theirs)
