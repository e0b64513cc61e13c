"""Quants of a quantized GGUF: refused, or byte for byte those of llama-quantize."""

from pathlib import Path

import pytest

from tests import native_tools
from tests.building.builds import sha256_of
from tests.cli.command import quantkit, refusal
from tests.gguf_sources import unquantized

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"
QUANTS = ("q8_0", "q6_k", "q5_0", "q4_k_m", "q2_k", "f16", "bf16", "f32")

pytestmark = pytest.mark.native


@pytest.mark.parametrize("stored", ["q8_0", "q5_1", "q4_k_m"])
def test_allow_requantize(tmp_path: Path, stored: str) -> None:
    source = unquantized(TINY, tmp_path / "source", quant=stored, name="Tiny")
    wishes = [word for quant in QUANTS for word in ("-q", quant)]
    out = tmp_path / "out"

    refused = refusal(quantkit("build", source, *wishes, "-o", out, "--no-smoke"))
    assert f"{source} is quantized already (" in refused
    assert "--allow-requantize" in refused
    assert not out.exists()
    done = quantkit("build", source, *wishes, "-o", out, "--no-smoke", "--allow-requantize")
    assert done.code in (0, None), done.err
    for quant in QUANTS:
        theirs = tmp_path / f"{quant}.gguf"
        native_tools.quantize(source, theirs, quant.upper(), requantize=True, threads=1)
        (ours,) = out.glob(f"*-{quant.upper()}.gguf")
        assert sha256_of(ours) == sha256_of(theirs), quant
