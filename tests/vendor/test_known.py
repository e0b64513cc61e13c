"""What another llama.cpp changed is told in words."""

import pytest

from tests import native_tools
from vendor import known

SOURCE = """
// A comment.
static int first(int a,
                 int b) {
    return a; // why
}

struct no_function {
    int a;
};

bool second() {
    return true;
}
"""


def summary(**changed: set[str]) -> known.Summary:
    return {part: frozenset(changed.get(part, {"same"})) for part in known.PARTS}


def test_each_part_that_differs_is_a_line() -> None:
    before = summary(
        architectures={"llama", "foo"},
        types={"Q4_0=2,32,18", "Q8_0=8,32,34"},
        rules={"tensor_get_category=00", "llama_tensor_get_type=11"},
    )
    after = summary(
        architectures={"llama", "qwen4", "a"},
        types={"Q4_0=2,32,20", "Q8_0=8,32,34", "Q1_0=41,128,18"},
        rules={"tensor_get_category=01", "llama_tensor_get_type=11"},
    )
    assert known.tell(before, after) == [
        "ggml types (number, elements and bytes of a block): + Q1_0, ~ Q4_0 (2,32,18 -> 2,32,20)",
        "functions of src/llama-quant.cpp: ~ tensor_get_category",
        "architectures: + a, + qwen4, - foo",
    ]
    assert known.tell(after, after) == []


def test_a_summary_is_kept_as_it_is() -> None:
    kept = summary(keys={f"{{arch}}.a-long-key-{n}" for n in range(100)})
    assert known.from_toml(known.to_toml(kept, "1.2")) == (kept, "1.2")


def test_a_function_is_its_code_without_comments_and_layout() -> None:
    found = known.values(frozenset(known.functions(SOURCE)))
    assert found.keys() == {"first", "second"}
    other = SOURCE.replace("// why", "/* because */").replace("        ", " ")
    assert known.values(frozenset(known.functions(other))) == found
    other = SOURCE.replace("return a", "return b")
    changed = known.values(frozenset(known.functions(other)))
    assert changed["first"] != found["first"]
    assert changed["second"] == found["second"]


def test_tables_are_read_without_running_them() -> None:
    source = 'raise SystemExit\nA: dict[str, str] = {"X": "y"}\nB: dict[str, str] = {"Z": "z"}'
    assert list(known.pairs(source, "A")) == ["X=y"]


@pytest.mark.native
def test_llama_cpp_is_as_quantkit_knows_it() -> None:
    """What to do about a difference: docs/updating-llama.cpp.md."""
    before, _ = known.from_toml(known.KNOWN.read_text(encoding="utf-8"))
    tree = native_tools.CONVERTER.parent
    now = known.summarize(tree)
    assert all(len(entries) > 10 for entries in now.values())
    assert known.tell(before, now) == []
