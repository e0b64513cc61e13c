"""The type of every tensor of the converter's own GGUFs, against ``llama-quantize --dry-run``.

What these have and headers written by hand have not: the keys, names and types that the converter
writes today.
"""

from pathlib import Path

import pytest

from quantkit.checkpoint.gguf import read_header
from quantkit.core.errors import PlanError
from quantkit.families.facts import facts_of, known_architectures
from quantkit.families.model import Target
from quantkit.planning.llama_quantize import assign, in_file_order
from quantkit.planning.quants import all_quants
from quantkit.planning.recipe import recipe_of
from tests.architectures.dry_run import dry_run
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL
from tests.native_tools import ToolError

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_ggufs(tmp_path_factory)


@pytest.mark.parametrize("name", SMALL)
def test_every_type_is_llama_quantizes(ggufs: dict[str, Path], name: str) -> None:
    header = read_header(ggufs[name])
    arch = header.metadata["general.architecture"]
    assert arch in known_architectures()
    facts = facts_of(arch, header.metadata)
    targets = in_file_order(
        Target(row.name, "", row.shape, stored=row.encoding.name) for row in header.tensors
    )
    for quant in (quant for quant in all_quants().values() if not quant.base):
        try:
            theirs = list(dry_run(ggufs[name], quant.name).items())
        except ToolError:
            with pytest.raises(PlanError):
                assign(targets, arch, facts, recipe_of(quant), has_imatrix=False)
            continue
        chosen = assign(targets, arch, facts, recipe_of(quant), has_imatrix=False)
        mine = [(t.name, kind.name) for t, kind in zip(targets, chosen, strict=True)]
        assert mine == theirs, quant.name
