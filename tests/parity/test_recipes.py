"""A recipe in llama-quantize's own form: the stock tool makes the same bytes of it."""

from pathlib import Path

import pytest

from quantkit.building.work import prepare
from quantkit.recipes.file import apply_recipe, read_recipe
from tests import native_tools
from tests.building.builds import build_work
from tests.cli.command import quantkit
from tests.parity.both_ways import Source, convert
from tests.parity.cases import CASES
from tests.parity.compare import assert_same_file

pytestmark = pytest.mark.native

# Rows of 256 and more, and rows that 256 does not divide, which fall back.
NAMES = ("tiny-mixtral", "mixtral ragged")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("recipes")
    return convert(folder, {name: CASES[name] for name in NAMES})


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *(("tiny-mixtral", bits) for bits in ("3.3", "4.4", "6.5")),
        *(("mixtral ragged", bits) for bits in ("5.2", "6.5", "10")),
    ],
)
def test_llama_quantize_makes_the_same_file(
    sources: dict[str, Source], name: str, bits: str, tmp_path: Path
) -> None:
    source = sources[name]
    source.require()
    assert isinstance(source.checkpoint, Path)
    recipe, types = tmp_path / "recipe.toml", tmp_path / "types.txt"
    options = ["--bpw", bits, "--no-floor", "all", "-o", recipe, "--tensor-type-file", types]
    asked = quantkit("recipe", source.checkpoint, *options)
    assert asked.code in (0, None), asked
    kept = read_recipe(recipe)
    assert len(set(kept.types.values())) > 1

    work = prepare(source.checkpoint, (), choose=lambda model, *_: apply_recipe(kept, model))
    (artifact,) = build_work(work, tmp_path / "ours")
    theirs = tmp_path / "theirs.gguf"
    command: list[str | Path] = [native_tools.tool("llama-quantize"), "--tensor-type-file", types]
    native_tools.run([*command, source.converted, theirs, kept.base, "2"], makes=theirs)
    assert_same_file(artifact.path, theirs)
