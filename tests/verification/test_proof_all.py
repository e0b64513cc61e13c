"""Conversions of twenty architectures, sound and faulty: by hand."""

from pathlib import Path

import pytest

from tests.verification.proofs import CASES, check_architecture

pytestmark = pytest.mark.search


@pytest.mark.parametrize("name", CASES)
def test_sound_conversions_are_proven_and_faults_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_architecture(name, tmp_path, monkeypatch)
