"""Whole files made with importance matrices of ``llama-imatrix``, in both of its formats."""

from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import numpy as np
import pytest

from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.errors import ImatrixError
from tests import native_tools
from tests.imatrix_writer import legacy_imatrix, write_gguf_imatrix
from tests.parity.both_ways import ALL_QUANTS, PLAIN_QUANTS, Source, convert
from tests.parity.cases import Case, random, trained

pytestmark = pytest.mark.native

CASES: dict[str, Case] = {
    "tiny-mixtral": trained("tiny-mixtral"),
    "tiny-mistral": trained("tiny-mistral"),
    "mixtral": random("mixtral", num_hidden_layers=1, intermediate_size=256),
    "llama": random("llama", num_hidden_layers=8, num_attention_heads=8, intermediate_size=256),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    return convert(tmp_path_factory.mktemp("imatrix"), CASES)


def make_imatrix(source: Source, out: Path) -> Path:
    """What llama-imatrix makes of a model and some text, in the format of the suffix."""
    source.require()
    text = out.with_suffix(".txt")
    text.write_text("\n".join(topics[name] for name in ("assignment", "class", "types")))
    fmt: Literal["gguf", "dat"] = "gguf" if out.suffix == ".gguf" else "dat"
    native_tools.imatrix(source.converted, text, out, fmt=fmt, chunks=4, context=128)
    return out


@pytest.mark.parametrize(
    ("name", "suffix", "quants"),
    [
        ("tiny-mixtral", "gguf", ["q4_k_m", "q4_0", "iq4_xs", "iq3_s", "iq3_xxs"]),
        ("tiny-mixtral", "dat", ["q4_k_s", "q5_0", "iq3_m", "q2_k_s"]),
        ("tiny-mistral", "gguf", PLAIN_QUANTS),
        ("tiny-mistral", "dat", ALL_QUANTS),
        ("llama", "dat", ["q4_0", "q5_0", "iq4_nl", "iq3_xs"]),
    ],
)
def test_every_byte_is_llama_quantizes(
    sources: dict[str, Source], name: str, suffix: str, quants: list[str], tmp_path: Path
) -> None:
    imatrix = make_imatrix(sources[name], tmp_path / f"imatrix.{suffix}")
    sources[name].compare(quants, tmp_path, imatrix=imatrix)


def test_an_expert_that_no_token_reached(sources: dict[str, Source], tmp_path: Path) -> None:
    """Its count is 0, and all of its columns then matter the same, whoever encodes them.

    Quants whose tables take llama-quantize seconds are left to tiny-mistral.
    """
    from gguf import GGUFReader

    imatrix = make_imatrix(sources["mixtral"], tmp_path / "imatrix.gguf")
    for tensor in GGUFReader(imatrix, "r+").tensors:
        if "_exps" in tensor.name:
            tensor.data.reshape(8, -1)[3] = 0
    entry = load_imatrix(imatrix).entries["blk.0.ffn_up_exps.weight"].reshape(8, 256)
    assert (entry[3] == 1).all()
    assert not (entry[2] == 1).any()
    sources["mixtral"].compare([*PLAIN_QUANTS, "iq3_xxs", "q2_k_s"], tmp_path, imatrix=imatrix)


def test_an_odd_imatrix(sources: dict[str, Source], tmp_path: Path) -> None:
    """One for the output too, of a wrong size for the embeddings, and without some tensors.

    Its path and that of its text are longer than the 127 bytes that llama-quantize keeps of them,
    and the cut goes through the two bytes of a letter.
    """
    from gguf import GGUFReader

    rng = np.random.default_rng(5)
    ones = np.ones((1, 1), np.float32)
    entries = {
        tensor.name: (rng.random((1, 256), np.float32) * 100, 37 * ones)
        for tensor in GGUFReader(sources["llama"].converted).tensors
        if len(tensor.shape) > 1 and "ffn_up" not in tensor.name and ".3." not in tensor.name
    }
    assert "output.weight" in entries
    entries["token_embd.weight"] = (np.ones((1, 7), np.float32), ones)
    before = len(str(tmp_path)) + 1
    folder = tmp_path / ("-" * (before % 2) + "\u00e9" * 60)
    folder.mkdir()
    imatrix, text = folder / "imatrix.gguf", "\u00e9" * 70
    for long in (str(imatrix), text):
        assert "\ufffd" in long.encode()[:127].decode(errors="replace")
    write_gguf_imatrix(imatrix, entries, datasets=[text, "another"], chunk_count=0)
    quants = ["bf16", "q8_0", "q6_k", "q4_k_m", "q4_0", "iq4_xs", "iq3_s", "q2_k"]
    sources["llama"].compare(quants, tmp_path, imatrix=imatrix)


def test_an_imatrix_without_its_text(sources: dict[str, Source], tmp_path: Path) -> None:
    values = np.full(256, 2, np.float32)
    imatrix = tmp_path / "imatrix.dat"
    imatrix.write_bytes(legacy_imatrix({"blk.0.ffn_up.weight": (values, 0)}, ending=b""))
    sources["llama"].compare(["f16", "q4_0", "q4_k_m"], tmp_path, imatrix=imatrix)


def test_an_imatrix_of_another_model_is_refused_by_both(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    imatrix = make_imatrix(sources["llama"], tmp_path / "imatrix.gguf")
    source = sources["tiny-mistral"]  # its feed-forward part is wider
    with pytest.raises(native_tools.ToolError, match=r"imatrix size 256 is different from .* 512"):
        native_tools.quantize(source.converted, tmp_path / "x.gguf", "q4_0", imatrix=imatrix)
    with pytest.raises(ImatrixError, match=r"made for another model: .*blk\.4-7\."):
        source.build(["q4_0"], tmp_path / "ours", imatrix=load_imatrix(imatrix))
