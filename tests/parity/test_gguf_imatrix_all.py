"""Importance matrices against llama-imatrix's for all architectures: 10 minutes (-m search)."""

from pathlib import Path

import pytest

from quantkit.core.errors import CalibrationError
from tests.native_tools import ToolError
from tests.parity.imatrices import ALONE, COMPARED, compare_matrices

pytestmark = pytest.mark.search


@pytest.mark.parametrize("name", COMPARED)
def test_sums_are_llama_imatrixs(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare_matrices(name, tmp_path, tmp_path_factory)


@pytest.mark.parametrize("name", ALONE)
def test_what_llama_imatrix_does_not_run(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is asked all the same, so that this list is no longer than it has to be."""
    with pytest.raises((CalibrationError, ToolError)):
        compare_matrices(name, tmp_path, tmp_path_factory)
