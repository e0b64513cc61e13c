"""Names together and apart again, and as llama-quantize reads them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.core.errors import PlanError
from quantkit.planning.recipe import parse_override
from quantkit.planning.spans import Span, parse_span, span_together

NAMES = [
    "output.weight",
    "token_embd.weight",
    *(f"blk.{layer}.attn_k.weight" for layer in (0, 1, 2, 3, 7, 10)),
    "blk.4.attn_q.weight",
    "enc.blk.0.attn_k.weight",
    "blk.01.attn_k.weight",  # no layer that llama.cpp writes
]


def test_layers_of_a_kind_come_together() -> None:
    assert [span.text for span in span_together(reversed(NAMES))] == [
        "blk.01.attn_k.weight",
        "output.weight",
        "token_embd.weight",
        "blk.0-3,7,10.attn_k.weight",
        "blk.4.attn_q.weight",
        "enc.blk.0.attn_k.weight",
    ]


def test_a_span_is_read_as_it_is_written() -> None:
    spans = span_together(NAMES)
    assert [parse_span(span.text) for span in spans] == spans
    assert sorted(name for span in spans for name in span.names) == sorted(NAMES)


@pytest.mark.parametrize(
    "layers", ["3-1", "3-0", "0-0", "1,0", "0-2,2", "1,1", "0-10000", "123456"]
)
def test_strange_layers_are_refused(layers: str) -> None:
    with pytest.raises(PlanError, match="out of order"):
        parse_span(f"blk.{layers}.attn_k.weight")


def test_a_pattern_finds_these_tensors_alone() -> None:
    span = Span("blk", "attn_k.weight", (0, 1, 11))
    assert span.pattern == r"^blk\.(?:0|1|11)\.attn_k\.weight$"
    found = re.compile(span.pattern)
    assert all(found.search(name) for name in span.names)
    others = (
        "blk.2.attn_k.weight",
        "blk.0.attn_k.weight2",
        "xblk.0.attn_k.weight",
        "blk.0.attn_kXweight",
    )
    assert not any(found.search(name) for name in others)
    assert Span("blk", "a.weight", (7,)).pattern == r"^blk\.7\.a\.weight$"


@given(st.text(st.characters(max_codepoint=126), min_size=1, max_size=12))
def test_whatever_stands_in_a_name_stands_for_itself(name: str) -> None:
    """Also in lower case, and in one word of a file without a ``=`` before its own."""
    span = Span("", name, ())
    assert len(span.pattern.split()) == 1
    override = parse_override(f"{span.pattern}=q8_0")
    assert override.pattern.search(name)
    assert not override.pattern.search(f"a{name}")
    assert "=" not in span.pattern
