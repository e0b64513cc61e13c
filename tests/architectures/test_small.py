"""Every small model is one that the converter writes and that llama-quantize takes for a model."""

import re
from pathlib import Path

import pytest

from tests.architectures.dry_run import report, shapes, types
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_ggufs(tmp_path_factory)


def test_llama_quantize_takes_every_small_model(ggufs: dict[str, Path]) -> None:
    fitting: set[str] = set()
    others: set[str] = set()
    wrong = []
    for name, file in ggufs.items():
        printed = report(file, "Q4_K_M")
        arch = SMALL[name].arch
        if not re.search(rf"general.architecture +str += {arch}$", printed, re.MULTILINE):
            wrong.append(f"{name} is no {arch}")
        changed = [tensor for tensor, kind in types(printed).items() if kind not in ("F32", "BF16")]
        if not changed:
            wrong.append(f"{name} has nothing to quantize")
        rows = {shapes(printed)[tensor][0] for tensor in changed}
        (fitting if all(row % 256 == 0 for row in rows) else others).add(arch)

    assert wrong == []
    # What the tests of types and whole files count on.
    assert len(fitting | others) >= 80
    assert len(fitting) >= 30
    assert len(others) >= 30
