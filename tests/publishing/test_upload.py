"""Files go up once, are checked, and every refusal is one sentence."""

import hashlib
import re
from pathlib import Path

import pytest

from quantkit.core.errors import PublishError, QuantkitError, UploadError
from quantkit.publishing.upload import Upload, Uploader
from tests.hub_writes import READER, HubStore

REPO = "someone/Model-GGUF"


def upload(path: str, content: bytes | Path) -> Upload:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return Upload(content, path, hashlib.sha256(data).hexdigest())


@pytest.fixture
def weights(tmp_path: Path) -> Upload:
    file = tmp_path / "a.gguf"
    file.write_bytes(bytes(range(256)) * 1000)
    return upload("folder/a.gguf", file)


def sentence(error: QuantkitError, code: int) -> str:
    text = str(error)
    assert error.exit_code == code
    assert "\n" not in text
    assert text.endswith(".")
    assert "http" not in text.replace("HF_", "")
    assert "hf_" not in text
    return text


@pytest.mark.parametrize("part_bytes", [None, 100_000])
def test_a_file_goes_up_once(hub: HubStore, weights: Upload, part_bytes: int | None) -> None:
    hub.part_bytes = part_bytes
    seen: list[tuple[str, int, int]] = []
    uploader = Uploader(REPO, private=True, report=lambda *step: seen.append(step))
    assert set(uploader.open()) == {".gitattributes"}
    licence = upload("LICENSE", b"Do what you like.\n")
    assert uploader.send([weights, licence], "All of it") == ["folder/a.gguf", "LICENSE"]
    assert hub.private[REPO]
    assert isinstance(weights.content, Path)
    assert hub.repos[REPO]["folder/a.gguf"] == weights.content.read_bytes()
    assert hub.repos[REPO]["LICENSE"] == licence.content
    places = [done for path, done, _ in seen if path == "folder/a.gguf"]
    assert places == sorted(places)
    assert places[-1] == 256_000
    assert len(places) > 2
    assert uploader.send([weights], "Again") == []
    another = Uploader(REPO)
    another.open()
    assert another.send([weights, licence], "Another day") == []
    assert [commit.message for commit in hub.commits[REPO]] == ["All of it"]
    assert hub.received == {weights.sha256: 256_000}


@pytest.mark.usefixtures("hub")
def test_nothing_private_goes_into_a_public_repository() -> None:
    Uploader(REPO).open()
    with pytest.raises(PublishError) as caught:
        Uploader(REPO, private=True).open()
    assert "exists and is public" in sentence(caught.value, 2)


def test_what_was_sent_but_not_committed_is_not_sent_again(hub: HubStore, weights: Upload) -> None:
    uploader = Uploader(REPO)
    uploader.open()
    hub.fail("POST", "/commit/", 403, message="Not today")
    with pytest.raises(PublishError, match=re.escape("may not write to someone/Model-GGUF (Not")):
        uploader.send([weights], "First")
    hub.faults.clear()
    assert uploader.send([weights], "Second") == ["folder/a.gguf"]
    assert hub.received == {weights.sha256: 256_000}


@pytest.mark.parametrize("path", ["repos/create", "/preupload/", "/objects/batch", "/commit/"])
def test_a_rate_limit_is_waited_for(
    hub: HubStore, weights: Upload, waits: list[float], path: str
) -> None:
    hub.fail("POST", path, 429, headers={"Retry-After": "7"}, times=2)
    uploader = Uploader(REPO)
    uploader.open()
    uploader.send([weights], "All")
    assert len(waits) == 2
    assert all(7 <= wait <= 8 for wait in waits)
    assert hub.received == {weights.sha256: 256_000}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "repos/create"),
        ("GET", "/tree/"),
        ("POST", "/preupload/"),
        ("PUT", "/lfs/"),
        ("POST", "/commit/"),
        ("POST", "/paths-info/"),
    ],
)
def test_server_errors_pass(
    hub: HubStore, weights: Upload, waits: list[float], method: str, path: str
) -> None:
    hub.fail(method, path, 500, times=3)
    uploader = Uploader(REPO)
    uploader.open()
    uploader.send([weights], "All")
    assert len(waits) == 3
    assert len(hub.commits[REPO]) == 1


def test_a_server_that_stays_broken(hub: HubStore, weights: Upload, waits: list[float]) -> None:
    uploader = Uploader(REPO)
    uploader.open()
    hub.fail("PUT", "/lfs/", 503)
    with pytest.raises(UploadError) as caught:
        uploader.send([weights], "All")
    assert "answered 503 for someone/Model-GGUF" in sentence(caught.value, 1)
    assert sum(waits) < 600


def test_a_wrong_token(hub: HubStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisoneiswrong")
    with pytest.raises(PublishError) as caught:
        Uploader(REPO).open()
    assert "does not accept the token" in sentence(caught.value, 2)
    assert not hub.repos


@pytest.mark.usefixtures("hub")
def test_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError) as caught:
        Uploader(REPO).open()
    assert "token" in sentence(caught.value, 2)


@pytest.mark.usefixtures("hub")
def test_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(PublishError) as caught:
        Uploader(REPO).open()
    assert "may not write to someone/Model-GGUF" in sentence(caught.value, 2)


def test_no_room_on_the_hub(hub: HubStore, weights: Upload) -> None:
    uploader = Uploader(REPO)
    uploader.open()
    hub.fail("PUT", "/lfs/", 507)
    with pytest.raises(UploadError) as caught:
        uploader.send([weights], "All")
    assert "The Hub has no room" in sentence(caught.value, 1)


def test_a_name_that_is_none() -> None:
    with pytest.raises(PublishError, match="is not a repository"):
        Uploader("a/b/c").open()


@pytest.mark.usefixtures("hub", "waits")
def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError) as caught:
        Uploader(REPO).open()
    assert "connection to the Hub failed" in sentence(caught.value, 1)


def test_the_hub_lists_another_file_afterwards(hub: HubStore) -> None:
    uploader = Uploader(REPO)
    uploader.open()
    sent = Upload(b"a", "notes.txt", hashlib.sha256(b"a").hexdigest())
    hub.keep = lambda data: data + b"!"
    with pytest.raises(UploadError) as caught:
        uploader.send([sent], "All")
    assert "notes.txt is not what was sent" in sentence(caught.value, 1)
