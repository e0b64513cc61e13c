"""Recipes in files: read as they were written, the same each time, refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import pytest

from quantkit.core.errors import PlanError
from quantkit.planning.recipe import parse_override
from quantkit.recipes.file import (
    SearchedRecipe,
    apply_recipe,
    digest_of,
    read_recipe,
    tensor_type_file,
    write_recipe,
)
from tests.recipes.models import layout_of, model_of, search_of

MODEL = model_of(
    ("token_embd.weight", (64, 256)),
    ("output.weight", (64, 256)),
    *((f"blk.{layer}.attn_q.weight", (256, 256)) for layer in range(3)),
    ("blk.0.attn_norm.weight", (256,)),
)
TYPES = {
    "token_embd.weight": "Q4_K",
    "output.weight": "Q6_K",
    "blk.0.attn_q.weight": "Q5_K",
    "blk.1.attn_q.weight": "IQ3_S",
    "blk.2.attn_q.weight": "Q5_K",
}
RECIPE = SearchedRecipe(
    "llama",
    "q4_k_m",
    digest_of(t for t in MODEL.targets if len(t.shape) > 1),
    TYPES,
    False,
    'a "b"',
)
TEXT = f"""\
# A recipe of quantkit, for quantkit build MODEL --recipe FILE; see docs/recipes.md.
version = 1
arch = "llama"
base = "q4_k_m"
weighted = false
basis = "a \\"b\\""
shapes = "{RECIPE.shapes}"

[types]
"output.weight" = "q6_k"
"token_embd.weight" = "q4_k"
"blk.0,2.attn_q.weight" = "q5_k"
"blk.1.attn_q.weight" = "iq3_s"
"""


def test_a_file_is_short_and_always_the_same(tmp_path: Path) -> None:
    write_recipe(tmp_path / "a.toml", RECIPE)
    assert (tmp_path / "a.toml").read_text() == TEXT
    backwards = replace(RECIPE, types=dict(reversed(TYPES.items())))
    write_recipe(tmp_path / "b.toml", backwards)
    assert (tmp_path / "b.toml").read_text() == TEXT
    assert read_recipe(tmp_path / "a.toml") == RECIPE


def test_a_searched_recipe_survives_its_file(tmp_path: Path) -> None:
    search = search_of(MODEL, weighted=True)
    recipe = search.within((search.smallest + search.largest) // 2)
    write_recipe(tmp_path / "a.toml", recipe)
    kept = read_recipe(tmp_path / "a.toml")
    assert kept == recipe
    assert layout_of(kept, MODEL).digest == layout_of(recipe, MODEL).digest


def test_a_tensor_type_file_says_the_same() -> None:
    lines = tensor_type_file(RECIPE).splitlines()
    assert lines[2:] == [
        r"^blk\.(?:0|2)\.attn_q\.weight$=q5_k",
        r"^blk\.1\.attn_q\.weight$=iq3_s",
    ]
    overrides = list(map(parse_override, lines))
    for name, kind in TYPES.items():
        assert [o.encoding.name for o in overrides if o.pattern.search(name)] == [kind]


def test_what_a_recipe_makes() -> None:
    plan = layout_of(RECIPE, MODEL).plan
    assert {t.target.name: t.encoding.name for t in plan.tensors} == TYPES | {
        "blk.0.attn_norm.weight": "F32"
    }
    assert plan.record["types"]["blk.0,2.attn_q.weight"] == "q5_k"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("version = 1", "version = 2", "this version"),
        ("version = 1", "version = ", "is not TOML"),
        ("q6_k", "q6_z", "'q6_z', which is not a type of weights"),
        ("q6_k", "q8_k", "not a type of weights"),
        ("q4_k_m", "q4_k_l", "not a file type of blocks"),
        ("q4_k_m", "bf16", "not a file type of blocks"),
        ("blk.1.", "blk.0-1.", r"names 'blk.0.attn_q.weight' twice"),
        ("blk.1.", "blk.1-9999999.", "no type|rise|says nothing"),
        ('"blk.1.attn', '"output.weight" = "q8_0"\n"blk.1.attn', "is not TOML"),
        ("[types]", "extra = 1\n[types]", "extra"),
        (RECIPE.shapes, "abc", "shapes"),
        ("weighted = false", 'weighted = "no"', "bool"),
        ("[types]", "[other]", "other"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, old: str, new: str, why: str) -> None:
    path = tmp_path / "a.toml"
    assert old in TEXT
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(PlanError, match=why) as raised:
        apply_recipe(read_recipe(path), MODEL)
    assert str(raised.value).count(". ") == 0


def test_a_recipe_for_other_tensors_is_refused() -> None:
    def refused(recipe: SearchedRecipe) -> str:
        with pytest.raises(PlanError) as raised:
            apply_recipe(recipe, MODEL)
        return str(raised.value)

    fewer = {name: kind for name, kind in TYPES.items() if "blk.2" not in name}
    assert "says nothing of blk.2.attn_q.weight" in refused(replace(RECIPE, types=fewer))
    more = TYPES | {"blk.3.attn_q.weight": "Q4_K"}
    assert "there is no 'blk.3.attn_q.weight' here" in refused(replace(RECIPE, types=more))
    assert "other shapes" in refused(replace(RECIPE, shapes="0" * 64))
    assert "architecture 'qwen3'" in refused(replace(RECIPE, arch="qwen3"))


def test_rows_that_do_not_fit_are_named() -> None:
    model = model_of(("token_embd.weight", (64, 96)))
    recipe = SearchedRecipe(
        "llama", "q4_k_m", digest_of(model.targets), {"token_embd.weight": "Q4_K"}
    )
    with pytest.raises(PlanError, match="write q5_0 for it"):
        apply_recipe(recipe, model)
    apply_recipe(replace(recipe, types={"token_embd.weight": "Q5_0"}), model)
