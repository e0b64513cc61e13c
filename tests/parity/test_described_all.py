"""All other architectures and stored forms: a quarter of an hour, by hand (-m search)."""

from pathlib import Path

import pytest

from tests.parity.described import (
    CONVERTED,
    FOREIGN,
    FORMS,
    USUAL,
    compare_architecture,
    compare_form,
)

pytestmark = [pytest.mark.search, pytest.mark.usefixtures("shared_converter")]


@pytest.mark.parametrize("name", [name for name in FOREIGN if name not in USUAL])
def test_every_other_architecture(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare_architecture(name, FOREIGN, tmp_path, tmp_path_factory)


@pytest.mark.parametrize("name", [name for name in CONVERTED if name not in FORMS])
def test_every_other_form(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare_form(name, CONVERTED, tmp_path, tmp_path_factory)
