"""Every header is one that llama-quantize takes for a model."""

import re
import subprocess
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from tests import native_tools
from tests.architectures.dry_run import FILE_TYPES, dry_run, imatrix_of_nothing, mebibytes, report
from tests.architectures.published import HEADERS, REFUSED, header
from tests.architectures.sparse import bytes_of, sparse_gguf

pytestmark = pytest.mark.native


@pytest.mark.parametrize("name", HEADERS)
def test_llama_quantize_reads_every_header(name: str, tmp_path: Path) -> None:
    file = sparse_gguf(tmp_path / "model.gguf", header(name))

    found = dry_run(file, "Q4_K_M")

    assert set(found) == set(header(name).tensors)
    assert file.stat().st_blocks * 512 < 2**22


def test_a_dry_run_says_types_and_their_size(tmp_path: Path) -> None:
    file = sparse_gguf(tmp_path / "model.gguf", header("llama-70b"))

    kept = dry_run(file, "F32")
    plain = dry_run(file, "IQ3_XXS")
    guided = dry_run(file, "IQ3_XXS", imatrix_of_nothing(tmp_path / "any.gguf"))
    pure = dry_run(file, "Q4_K_M", options=["--pure"])

    assert set(kept.values()) == {"F32"}
    assert plain["blk.79.ffn_down.weight"] == "Q3_K"
    assert guided["blk.79.ffn_down.weight"] == "IQ3_XXS"
    assert set(pure.values()) == {"Q4_K", "F32"}
    shapes = header("llama-70b").tensors.values()
    n_bytes = sum(bytes_of(s, Type.F32 if len(s) == 1 else Type.F16) for s in shapes)
    assert mebibytes(report(file, "F16")) == f"{n_bytes / 2**20:.2f}"


def test_a_file_cut_off_is_an_error_and_not_a_short_list(tmp_path: Path) -> None:
    file = sparse_gguf(tmp_path / "model.gguf", header("minilm"))
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 10**6)

    with pytest.raises(native_tools.ToolError):
        dry_run(file, "Q4_K_M")


def test_file_types_are_all_that_llama_quantize_lists() -> None:
    tool = native_tools.tool("llama-quantize")
    usage = subprocess.run([tool, "--help"], capture_output=True, text=True, check=False)
    listed = re.findall(r"^ +\d+ +or +(\w+)", usage.stdout + usage.stderr, re.MULTILINE)

    assert set(listed) - {"Q3_K", "Q4_K", "Q5_K"} == set(FILE_TYPES)


@pytest.mark.parametrize("name", REFUSED)
def test_llama_quantize_stops_at_what_it_cannot_read(name: str, tmp_path: Path) -> None:
    build, ftype, why = REFUSED[name]
    file = sparse_gguf(tmp_path / "model.gguf", build())

    with pytest.raises(native_tools.ToolError, match=why):
        dry_run(file, ftype)
