"""A Hub of our own, and the client pointed at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_writes import WRITER, HubStore, serve_writes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStore]:
    """An empty server that huggingface_hub takes for the Hub, with a token that may write."""
    from huggingface_hub import close_session, constants

    with serve_writes(HubStore()) as store:
        monkeypatch.setattr(constants, "ENDPOINT", store.url)
        template = f"{store.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield store
        close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that somebody would have slept, without the sleep."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept
