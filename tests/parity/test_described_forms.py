"""Stored forms that llama.cpp's converter reads, whole files against converter and quantizer."""

from pathlib import Path

import pytest

from tests.parity.described import FORMS, compare_form

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("shared_converter")]


@pytest.mark.parametrize("name", FORMS)
def test_stored_forms(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    compare_form(name, FORMS, tmp_path, tmp_path_factory)
