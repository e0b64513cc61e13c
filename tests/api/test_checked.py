"""Options that a program gives are of the right types and within bounds, or refused."""

from pathlib import Path
from typing import Any

import pytest

import quantkit
from quantkit.api.checked import checked, require_at_least
from quantkit.core.errors import PlanError

TINY = Path(__file__).parents[1] / "checkpoints" / "tiny-mistral"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"encoding": quantkit.EncodingOptions(search="worst")}, "EncodingOptions.search cannot"),
        ({"encoding": quantkit.EncodingOptions(kernel="slow")}, "EncodingOptions.kernel cannot"),
        ({"text": quantkit.TextOptions(chunks=0)}, r"TextOptions.chunks cannot be 0: .*>= 1\.$"),
        ({"text": quantkit.TextOptions(device="tpu")}, "TextOptions.device cannot be 'tpu'"),
        ({"resources": quantkit.Resources(jobs=-1)}, "Resources.jobs cannot be -1"),
        ({"files": quantkit.FileOptions(name=" ")}, "--name is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(options: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=sentence):
        quantkit.plan(TINY, "q4_k_m", quantkit.BuildOptions(**options), out=tmp_path)


@pytest.mark.parametrize(
    ("kind", "wrong", "sentence"),
    [
        (quantkit.TextOptions, {"text": "a.txt"}, "text cannot be 'a.txt': expected `tuple`"),
        (quantkit.Resources, {"jobs": "2"}, r"jobs cannot be '2': expected `int \| null`"),
        (quantkit.FileOptions, {"shard_size": "1GB"}, "shard_size cannot be '1GB'"),
        (quantkit.EncodingOptions, {"imatrix": "x.gguf"}, "imatrix cannot be 'x.gguf'"),
    ],
)
def test_another_type_is_refused(kind: type[Any], wrong: Any, sentence: str) -> None:
    with pytest.raises(PlanError, match=rf"^{kind.__name__}\.{sentence}"):
        checked(kind(**wrong), kind)


def test_another_thing_is_refused() -> None:
    with pytest.raises(PlanError, match=r"is not a BuildOptions"):
        checked({"text": 1}, quantkit.BuildOptions)


def test_a_text_stands_for_a_path(tmp_path: Path) -> None:
    given: Any = "a.gguf"
    drawn = checked(quantkit.PictureOptions(html=Path("p"), plots=given), quantkit.PictureOptions)
    assert (drawn.html, drawn.plots) == (Path("p"), Path("a.gguf"))
    found = checked(quantkit.EncodingOptions(imatrix=(given,)), quantkit.EncodingOptions)
    assert found.imatrix == (Path("a.gguf"),)
    planned = quantkit.plan(TINY, "q4_k_m", out=str(tmp_path))
    assert [layout.plan.quant.name for layout in planned.layouts] == ["q4_k_m"]


def test_numbers_below_a_bound_are_refused() -> None:
    require_at_least(1, threads=None, chunks=3)
    for wrong in (0, "3", True):
        with pytest.raises(PlanError, match=r"chunks cannot be .*; give a whole number from 1"):
            require_at_least(1, chunks=wrong)  # type: ignore[arg-type]  # which is what is tested
    with pytest.raises(PlanError, match="context cannot be 0"):
        quantkit.compare(TINY, context=0)
