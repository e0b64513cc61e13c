"""Checkpoints on the Hub, over a local server that speaks its protocol."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from quantkit.checkpoint.hub import open_hub_checkpoint
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CheckpointError, SafetensorsError
from quantkit.core.profiles import load_profile
from quantkit.core.tensors import SourceTensor
from quantkit.families import find_family
from quantkit.planning.plan import outline_plan
from quantkit.planning.quants import all_quants
from tests.hub_server import COMMIT, HubServer, serve
from tests.pickled import pickled
from tests.random_checkpoints import random_checkpoint, write_tokenizer

Serve = Callable[..., HubServer]
LOCAL = Path(__file__).parents[1] / "checkpoints" / "tiny-mixtral"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a folder to huggingface_hub, with a cache of its own."""
    from huggingface_hub import close_session, constants

    with ExitStack() as stack:

        def start(folder: Path, **settings: Any) -> HubServer:
            server = stack.enter_context(serve(HubServer(folder, **settings)))
            # What HF_ENDPOINT sets when huggingface_hub is imported.
            monkeypatch.setattr(constants, "ENDPOINT", server.url)
            template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
            monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
            monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
            return server

        yield start
        close_session()


@pytest.fixture(scope="module")
def mixtral_8x22b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixtral-8x22B in 59 files of the true sizes, sparse behind their headers."""
    folder = tmp_path_factory.mktemp("mixtral-8x22b")
    config = dict(load_profile("models/mixtral-8x22b.toml")["config"])
    shapes = find_family(config).describe(config, ()).sources
    limit = sum(prod(shape) * 2 for shape in shapes.values()) / 58.5
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for name, shape in shapes.items():
        n_bytes = prod(shape) * 2
        if end + n_bytes > limit and len(shards) < 59:
            shards.append({})
            end = 0
        entry = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        shards[-1][name] = entry
        end += n_bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        raw = json.dumps({"__metadata__": {"format": "pt"}} | shard).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw)
            stream.truncate(8 + len(raw) + max(e["data_offsets"][1] for e in shard.values()))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    # As large as the real ones, the largest files beside the weights.
    (folder / "tokenizer.model").write_bytes(bytes(493_443))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {}, "filler": "x" * 1_795_000}))
    return folder


def test_59_files_cost_under_3_mb_and_are_read_at_the_same_time(
    hub: Serve, mixtral_8x22b: Path
) -> None:
    server = hub(mixtral_8x22b, meet=4)

    checkpoint = open_hub_checkpoint("someone/Model")

    assert len(checkpoint.files) == 59
    assert len(checkpoint.tensors) == 1739
    assert sum(t.n_bytes for t in checkpoint.tensors.values()) == 281_241_268_224
    assert server.bytes_sent < 3_000_000, server.bytes_sent
    assert 4 <= server.most_at_once <= 8
    # The branch is looked up once; everything after names the commit.
    assert sum("/api/models/" in path for _, path, _ in server.requests) == 1
    assert all(f"/{COMMIT}/" in path for _, path, _ in server.requests if "/resolve/" in path)


def test_it_equals_the_folder(hub: Serve) -> None:
    hub(LOCAL)
    local = open_checkpoint(LOCAL)

    remote = open_hub_checkpoint("someone/Model", "main")

    assert remote.repo is not None
    assert remote.repo.commit == COMMIT
    assert remote.repo.repo_id == "someone/Model"
    assert set(remote.repo.hashes) == {file.name for file in local.files}
    assert remote.config == local.config
    assert [file.name for file in remote.files] == [file.name for file in local.files]

    assert plain(remote.tensors) == plain(local.tensors)
    assert not any(file.exists() for file in remote.files)
    models = [find_family(c.config).describe(c.config, c.tensors) for c in (remote, local)]
    assert models[0] == models[1]
    for quant in all_quants().values():
        sizes = [outline_plan(model, quant, has_imatrix=True).n_bytes for model in models]
        assert sizes[0] == sizes[1]
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (remote.path / name).read_bytes() == (LOCAL / name).read_bytes()


def test_a_long_header_takes_a_second_request(hub: Serve, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=4)
    server = hub(folder)

    checkpoint = open_hub_checkpoint("someone/Model")

    assert len(checkpoint.tensors) == len(open_checkpoint(folder).tensors)
    first, second = server.ranges_of("model.safetensors")
    assert first == "bytes=0-4095"
    assert second is not None
    assert second.startswith("bytes=4096-")


def plain(tensors: dict[str, SourceTensor]) -> list[tuple[Any, ...]]:
    return [(t.name, t.dtype, t.shape, t.file.name, t.offset, t.n_bytes) for t in tensors.values()]


def rezipped(path: Path, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a zip anew, as Python does, whose data are not aligned."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("files", [1, 3])
def test_weights_of_torch_save_are_described_by_two_requests_per_file(
    hub: Serve, tmp_path: Path, files: int
) -> None:
    """One for the directory at a file's end, one for the pickle at its beginning, no weights."""
    folder = pickled(LOCAL, tmp_path / "model", files, tied=True)
    server = hub(folder, meet=min(files, 2))

    remote = open_hub_checkpoint("someone/Model")

    local = open_checkpoint(folder)
    assert plain(remote.tensors) == plain(local.tensors)
    assert [file.name for file in remote.files] == [file.name for file in local.files]
    assert not any(file.exists() for file in remote.files)
    assert remote.repo is not None
    assert set(remote.repo.hashes) == {file.name for file in local.files}
    for file in local.files:
        end, start = (wanted.split("=")[1] for wanted in server.ranges_of(file.name) if wanted)
        first, last = map(int, start.split("-"))
        in_file = [t.offset for t in local.tensors.values() if t.file == file]
        assert (first, last < min(in_file)) == (0, True)
        assert int(end.split("-")[0]) == file.stat().st_size - 16 * 1024


def test_zips_of_others_take_a_request_per_storage(hub: Serve, tmp_path: Path) -> None:
    folder = pickled(random_checkpoint(tmp_path / "plain", "mistral"), tmp_path / "model")
    rezipped(folder / "pytorch_model.bin")
    server = hub(folder)

    remote = open_hub_checkpoint("someone/Model")

    local = open_checkpoint(folder)
    assert plain(remote.tensors) == plain(local.tensors)
    # One more for what lies in the last 16 KiB is not needed.
    assert len(server.ranges_of("pytorch_model.bin")) >= len(local.tensors)
    with (
        patch("quantkit.checkpoint.hub._MOST_RANGES", 5),
        pytest.raises(CheckpointError, match="takes over 5 requests; download it"),
    ):
        open_hub_checkpoint("someone/Model")


def test_hostile_weights_of_torch_save_are_refused(hub: Serve, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was-run"),)

    folder = pickled(random_checkpoint(tmp_path / "plain", "mistral"), tmp_path / "model")
    file = folder / "pytorch_model.bin"
    server = hub(folder)
    good = file.read_bytes()

    def refused(reason: str) -> None:
        server.requests.clear()
        with pytest.raises(CheckpointError, match=reason) as caught:
            open_hub_checkpoint("someone/Model")
        assert "\n" not in str(caught.value)
        assert len(server.ranges_of(file.name)) <= 5

    torch.save({"w": torch.zeros(4), "x": Evil()}, file)
    refused("mkdir'?, which no weights need, and was not run")
    assert not (tmp_path / "was-run").exists()
    torch.save({"w": torch.zeros(10**5)}, file, _use_new_zipfile_serialization=False)
    refused("by a PyTorch before 1.6")
    file.write_bytes(good[:-100])
    refused("not a sound zip")
    file.write_bytes(good)
    rezipped(file, zipfile.ZIP_DEFLATED)
    refused("compressed or encrypted")
    torch.save({"w": torch.zeros(400, 200).T}, file)
    refused("again with safetensors")
    file.write_bytes(b"")
    refused("not a sound zip")


def test_offline_weights_of_torch_save_are_read_where_they_are(
    hub: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download

    folder = pickled(LOCAL, tmp_path / "model", 2)
    server = hub(folder)
    snapshot_download("someone/Model", allow_patterns=["*.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="lacks 2 of the 2 weight files"):
        open_hub_checkpoint("someone/Model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot_download("someone/Model")
    server.requests.clear()
    online = open_hub_checkpoint("someone/Model")
    assert server.ranges_of(".bin") == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = open_hub_checkpoint("someone/Model")
    assert plain(offline.tensors) == plain(online.tensors)
    assert all(file.is_file() for file in offline.files)


def test_a_dropped_connection_is_resumed_where_it_broke(hub: Serve) -> None:
    def drop(name: str, time: int) -> bool:
        return name.endswith("00001-of-00002.safetensors") and time == 1

    server = hub(LOCAL, drop=drop)

    checkpoint = open_hub_checkpoint("someone/Model")

    assert len(checkpoint.tensors) == len(open_checkpoint(LOCAL).tensors)
    first, second, *_ = server.ranges_of("00001-of-00002.safetensors")
    assert (first, second) == ("bytes=0-4095", "bytes=2048-4095")


def test_a_connection_that_always_drops_is_given_up(hub: Serve) -> None:
    server = hub(LOCAL, drop=lambda name, _: name.endswith("00001-of-00002.safetensors"))

    with pytest.raises(CheckpointError, match=r"cannot be reached|stopped 5 times"):
        open_hub_checkpoint("someone/Model")
    assert len(server.ranges_of("00001-of-00002.safetensors")) == 5


@pytest.mark.parametrize(
    ("length", "reason"),
    [(10**12, "above the format's 100 MB"), (90_000_000, "past the end of the file")],
)
def test_a_header_that_lies_about_its_size_is_refused(
    hub: Serve, tmp_path: Path, length: int, reason: str
) -> None:
    folder = random_checkpoint(tmp_path / "model", "mistral")
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
    server = hub(folder)

    with pytest.raises(SafetensorsError, match=reason):
        open_hub_checkpoint("someone/Model")
    assert len(server.ranges_of("model.safetensors")) == 1


@pytest.mark.parametrize(
    ("lie", "reason"),
    [("ignores_ranges", "answered 200 instead of a byte range"), ("shifts_ranges", "but answered")],
)
def test_a_server_that_sends_other_bytes_is_refused(
    hub: Serve, mixtral_8x22b: Path, lie: str, reason: str
) -> None:
    server = hub(mixtral_8x22b, **{lie: True})

    with pytest.raises(CheckpointError, match=reason):
        open_hub_checkpoint("someone/Model")
    # Nothing read on through 281 GB: the sockets' buffers are all that was sent.
    assert server.bytes_sent < 500_000_000


@pytest.mark.parametrize(
    ("settings", "revision", "reason"),
    [
        ({"gated": True}, None, "is gated; accept its terms"),
        ({"token": "right"}, None, "is not on the Hub or is private"),
        ({"repo_id": "another/Model"}, None, "is not on the Hub or is private"),
        ({}, "no-such-branch", "has no revision 'no-such-branch'"),
        ({"status": 500}, None, "status 500: try again later"),
        ({"status": 403}, None, "the token has no right"),
    ],
)
def test_a_refusal_is_one_sentence(
    hub: Serve, settings: dict[str, Any], revision: str | None, reason: str
) -> None:
    hub(LOCAL, **settings)

    with pytest.raises(CheckpointError, match=reason) as caught:
        open_hub_checkpoint("someone/Model", revision)
    assert "\n" not in str(caught.value)


def test_without_a_network_it_says_so(hub: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub(LOCAL)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="The Hub cannot be reached for someone/Model"):
        open_hub_checkpoint("someone/Model")


def test_offline_says_what_is_missing(hub: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, snapshot_download

    hub(LOCAL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"HF_HUB_OFFLINE is set.*config.json of .* not in the Hub's cache"
    ):
        open_hub_checkpoint("someone/Model")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    snapshot_download("someone/Model", allow_patterns=["*.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="lacks 2 of the 2 weight files"):
        open_hub_checkpoint("someone/Model")


def test_a_name_that_is_none(hub: Serve) -> None:
    hub(LOCAL)
    with pytest.raises(CheckpointError, match="neither a folder nor a name on the Hub"):
        open_hub_checkpoint("a/b/c")
