"""A Hub of our own, and the client pointed at it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from quantkit.publishing import fits, release
from quantkit.publishing.layout import PublishedArtifact
from tests.hub_writes import WRITER, HubStore, serve_writes
from tests.publishing import builds


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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.make(tmp_path_factory.mktemp("built") / "out")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A finished build of a test's own."""
    return builds.copy(built, tmp_path / "out")


_FITS: dict[str, fits.Fits] = {}


@pytest.fixture(autouse=True)
def asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp is asked once what a build needs, not again for every test of that build."""

    def remembered(artifacts: Sequence[PublishedArtifact]) -> fits.Fits:
        key = " ".join(f"{a.name} {a.n_bytes}" for a in artifacts)
        if key not in _FITS:
            _FITS[key] = fits.find_fits(artifacts)
        return _FITS[key]

    monkeypatch.setattr(release, "find_fits", remembered)
