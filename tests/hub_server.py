"""A server that answers like the Hugging Face Hub, for tests: ours, on localhost, in threads.

It knows what huggingface_hub asks for to describe a model repository and to download its files,
whole or by range. Other calls (uploads) are added by giving ``Handler`` another method.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 64 * 1024
_STREAMED = (".safetensors", ".bin")  # weights that come from a checkpoint
_HASHED = 2**31  # larger files are sparse ones that tests read the headers of


@cache
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """The sha256 of a file as it is now; of one that is too large, something like it."""
    status = path.stat()
    if status.st_size > _HASHED:
        return hashlib.sha256(f"{path.name} {status.st_size}".encode()).hexdigest()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@dataclass
class HubServer:
    """One repository from a folder, how the server misbehaves, and what it was asked for."""

    folder: Path
    repo_id: str = "someone/Model"
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main",)
    token: str | None = None
    gated: bool = False
    status: int | None = None
    """Answer everything with this status."""
    meet: int = 0
    """Answers with weights wait until there have been so many at once."""
    drop: Callable[[str, int], bool] = lambda _name, _time: False
    """Whether to break off in the middle of a file's nth answer, n from 1."""
    drop_every: int | None = None
    """Break off in the middle of every nth answer with bytes of weights."""
    refuse: Callable[[str, int], tuple[int, dict[str, str]] | None] = lambda _name, _time: None
    """A status and headers instead of a file's nth answer, n from 1."""
    before: Callable[[str, int], None] = lambda _name, _time: None
    """Called before a file's nth answer."""
    moved: str | None = None
    """Another server that weights are on, as the Hub's are; it asks for no token."""
    extra_siblings: tuple[str, ...] = ()
    """Names that the listing has without files."""
    ignores_ranges: bool = False
    shifts_ranges: bool = False
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of every request."""
    authorizations: list[str | None] = field(default_factory=list)
    bytes_sent: int = 0
    most_at_once: int = 0
    _running: int = 0
    _answers: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _met: threading.Event = field(default_factory=threading.Event)

    def files(self) -> dict[str, Path]:
        return {
            path.relative_to(self.folder).as_posix(): path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }

    def ranges_of(self, name: str) -> list[str | None]:
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            if self.most_at_once >= self.meet:
                self._met.set()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def wait_for_others(self) -> None:
        """Until as many as ``meet`` have been answered at once."""
        if self.meet:
            self._met.wait()

    def sent(self, n_bytes: int) -> None:
        with self._lock:
            self.bytes_sent += n_bytes

    def drops(self, name: str, time: int) -> bool:
        """Whether to break this answer off."""
        if self.drop_every and name.endswith(_STREAMED):
            return self.nth_answer("") % self.drop_every == 0
        return self.drop(name, time)

    def nth_answer(self, name: str) -> int:
        with self._lock:
            self._answers[name] = self._answers.get(name, 0) + 1
            return self._answers[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test reads ``HubServer.requests``."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.authorizations.append(self.headers.get("Authorization"))
        if self.hub.status is not None:
            return self._fail(self.hub.status)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._fail(401, "RepoNotFound")
        repo = self.hub.repo_id
        api = f"/api/models/{repo}"
        if path.startswith(f"{api}/tree/"):
            return self._list(path.removeprefix(f"{api}/tree/"))
        if path == api or path.startswith(f"{api}/revision/"):
            return self._describe(path.removeprefix(api).removeprefix("/revision/") or "main")
        if path.startswith(f"/{repo}/resolve/"):
            revision, _, name = path.removeprefix(f"/{repo}/resolve/").partition("/")
            return self._resolve(revision, name)
        return self._fail(404, "RepoNotFound")

    def _describe(self, revision: str) -> None:
        if not self._knows(revision):
            return self._fail(404, "RevisionNotFound")
        siblings = [
            {"rfilename": name, "size": path.stat().st_size, "blobId": "0" * 40} | _lfs(path)
            for name, path in self.hub.files().items()
        ]
        siblings += [
            {"rfilename": name, "size": 4, "blobId": "0" * 40} for name in self.hub.extra_siblings
        ]
        repo = {"id": self.hub.repo_id, "sha": self.hub.commit, "siblings": siblings, "tags": []}
        self._send_json(repo | {"private": False, "downloads": 0, "likes": 0})
        return None

    def _list(self, revision: str) -> None:
        if not self._knows(revision):
            return self._fail(404, "RevisionNotFound")
        self._send_json(
            [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in self.hub.files().items()
            ]
        )
        return None

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._start(200, len(body), {"Content-Type": "application/json"})
        self._send(body)

    def _resolve(self, revision: str, name: str) -> None:
        if not self._knows(revision):
            return self._fail(404, "RevisionNotFound")
        if self.hub.gated:
            return self._fail(403, "GatedRepo")
        path = self.hub.files().get(name)
        if path is None:
            return self._fail(404, "EntryNotFound")
        nth = self.hub.nth_answer(name) if self.command == "GET" else 0
        self.hub.before(name, nth)
        refused = self.hub.refuse(name, nth)
        if refused is not None:
            return self._fail(refused[0], headers=refused[1])
        size = path.stat().st_size
        etag = f'"{content_hash(path)}"'
        headers = {
            "X-Repo-Commit": self.hub.commit,
            "X-Linked-Size": str(size),
            "X-Linked-ETag": etag,
            "ETag": etag,
            "Accept-Ranges": "bytes",
        }
        if self.hub.moved is not None and name.endswith(_STREAMED):
            self._start(302, 0, headers | {"Location": f"{self.hub.moved}{self.path}"})
            return None
        wanted = self.headers.get("Range")
        start, end, status = 0, size, 200
        if wanted and not self.hub.ignores_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last or size) + 1, size), 206
            if start >= size:
                return self._fail(416, headers={"Content-Range": f"bytes */{size}"})
            if self.hub.shifts_ranges:
                start, end = start + 1, end + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._start(status, end - start, headers)
        if self.command == "GET":
            with self.hub.counted():
                if name.endswith(_STREAMED):
                    self.hub.wait_for_others()
                self._send_file(path, start, end, self.hub.drops(name, nth))
        return None

    def _send_file(self, path: Path, start: int, end: int, drop: bool) -> None:
        stop = start + (end - start) // 2 if drop else end
        with path.open("rb") as file:
            file.seek(start)
            while start < stop and self._send(file.read(min(_CHUNK, stop - start))):
                start = file.tell()
        if drop:
            self.close_connection = True

    def _knows(self, revision: str) -> bool:
        return revision == self.hub.commit or revision in self.hub.branches

    def _fail(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self._start(status, 0, ({"X-Error-Code": code} if code else {}) | (headers or {}))

    def _start(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, data: bytes) -> bool:
        """Send and count; whether the client still listens."""
        if self.command == "HEAD":
            return False
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True
            return False
        self.hub.sent(len(data))
        return True


def _lfs(path: Path) -> dict[str, Any]:
    """What a listing says of a file in large file storage."""
    if path.suffix not in (*_STREAMED, ".gguf"):
        return {}
    sha256, size = content_hash(path), path.stat().st_size
    return {"lfs": {"sha256": sha256, "size": size, "pointerSize": 134}}


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Nothing: clients that hang up are part of the tests."""


@contextmanager
def serve(hub: HubServer) -> Iterator[HubServer]:
    """Serve until the block ends; ``hub.url`` is what HF_ENDPOINT takes."""
    server = _QuietServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def client_of(server: HubServer, cache: Path, token: str | None = None) -> Iterator[None]:
    """Point huggingface_hub, in this process and its children, at a server, with its own cache."""
    from huggingface_hub import close_session, constants

    settings: dict[str, Any] = {
        "ENDPOINT": server.url,  # what HF_ENDPOINT sets when huggingface_hub is imported
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_ASSETS_CACHE": str(cache / "assets"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_DISABLE_XET": True,
    }
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    if token is not None:
        environment["HF_TOKEN"] = token
    assets = "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE"  # a copy of the constant
    with (
        patch.multiple(constants, **settings),
        patch(assets, settings["HF_ASSETS_CACHE"]),
        patch.dict(os.environ, environment),
    ):
        try:
            yield
        finally:
            close_session()
