"""Importance matrices of more architectures against llama-imatrix's: 5 minutes (-m search)."""

from pathlib import Path

import pytest

from tests.calibration.test_lockstep_imatrix import compare_matrices

pytestmark = pytest.mark.search

NAMES = ("gemma2", "phi-mini", "stablelm", "falcon", "granitemoe", "qwen3next")


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_sums_are_llama_imatrixs(name: str, tmp_path: Path) -> None:
    compare_matrices(name, tmp_path)
