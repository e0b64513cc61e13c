"""GGUF headers over the Hub protocol."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.remote_gguf import fetch_gguf_header
from quantkit.core.errors import CheckpointError, GGUFError
from tests.hub_server import HubServer, serve

FILE = "some model.gguf"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A repository with a GGUF of 4 GB, sparse behind a header of more than 1 MB."""
    from gguf import GGUFWriter
    from huggingface_hub import close_session, constants

    folder = tmp_path / "repo"
    folder.mkdir()
    writer = GGUFWriter(folder / FILE, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"piece {i:020}" for i in range(40_000)])
    writer.add_tensor_info("output.weight", (2**20, 1024), np.dtype(np.float32), 2**32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with (folder / FILE).open("r+b") as file:
        file.truncate(-(-file.seek(0, 2) // 32) * 32 + 2**32)
    with serve(HubServer(folder)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
        yield server
        close_session()


def test_a_header_is_read_in_growing_ranges(hub: HubServer) -> None:
    path, n_bytes = fetch_gguf_header("someone/Model", FILE)

    whole = hub.folder / FILE
    assert n_bytes == whole.stat().st_size
    assert read_header(path, n_bytes) == read_header(whole)
    assert path.stat().st_size == read_header(whole).data_offset
    ranges = [r for method, _, r in hub.requests if method == "GET" and r]
    assert ranges == ["bytes=0-1048575", "bytes=1048576-2097151"]
    with pytest.raises(GGUFError, match="ends 4294967296 bytes before its last tensor"):
        read_header(path)

    fetch_gguf_header("someone/Model", FILE)
    assert len([r for _, _, r in hub.requests if r]) == 2


def test_no_gguf_is_refused(hub: HubServer) -> None:
    (hub.folder / "other.gguf").write_bytes(b"<html>" * 100)
    with pytest.raises(
        GGUFError, match=r"other\.gguf of someone/Model .* does not start with GGUF"
    ):
        fetch_gguf_header("someone/Model", "other.gguf")


def test_a_missing_file_is_named_with_what_there_is(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match=r"no file 'none\.gguf'; it has some model\.gguf"):
        fetch_gguf_header("someone/Model", "none.gguf")
    assert hub.bytes_sent < 10_000
