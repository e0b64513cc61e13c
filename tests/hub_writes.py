"""A server of our own that speaks the part of the Hub's API by which repositories are published.

The client is the real huggingface_hub. Made are repositories, preupload, LFS uploads (one PUT, or
parts where ``part_bytes`` says so), commits, trees, paths-info and downloads by range. It keeps
files in memory, counts what it takes, and fails where a test tells it to.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub_server import Handler, HubServer, _QuietServer

WRITER, READER = "hf_writerwriterwriterwriter", "hf_readerreaderreaderreader"
GITATTRIBUTES = b"*.gguf filter=lfs diff=lfs merge=lfs -text\n"
_LFS = (".gguf", ".safetensors", ".png", ".model")
_LARGE = 10 * 2**20
_CHUNK = 64 * 1024


@dataclass
class Fault:
    """Answer ``times`` requests whose method and path match with a status instead."""

    method: str
    path: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    times: int = 10**6


@dataclass
class Commit:
    message: str
    paths: tuple[str, ...]


@dataclass
class HubStore:
    """Repositories, the server's faults, and what it was asked."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[str, list[Commit]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS contents by sha256, committed or not."""
    faults: list[Fault] = field(default_factory=list)
    part_bytes: int | None = None
    """Ask for uploads in parts of so many bytes."""
    on_upload: Callable[[str, int], None] = lambda _oid, _received: None
    """Called with every piece of an upload, before it is counted."""
    keep: Callable[[bytes], bytes] = lambda data: data
    """What becomes of a file that is committed."""
    received: dict[str, int] = field(default_factory=dict)
    """Bytes of whole uploads by sha256: twice a file's size where it came twice."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    """All headers but Authorization, and all bodies that are not files, as they came."""
    url: str = ""
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, path: str, status: int, **more: Any) -> None:
        self.faults.append(Fault(method, path, status, **more))

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, path: str) -> int:
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def head(self, repo: str) -> str:
        made = json.dumps([len(self.commits[repo]), sorted(self.repos[repo])]).encode()
        return hashlib.sha1(made).hexdigest()  # noqa: S324 - git's choice, no secret


# A listing has the hashes of all files; those of gigabytes would take longer than clients wait.
@lru_cache(maxsize=128)
def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=128)
def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's choice


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith(_LFS) or size > _LARGE


class WritingHandler(Handler):
    """Answers as the Hub does; the replies' shapes are what huggingface_hub reads of them."""

    store: HubStore

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        self._serve()

    def do_PUT(self) -> None:  # noqa: N802 - http.server's name
        self._serve()

    def _answer(self) -> None:  # GET and HEAD
        self._serve()

    def _serve(self) -> None:
        store, url = self.store, urlsplit(self.path)
        path = unquote(url.path)
        store.requests.append((self.command, path))
        shown = [f"{k}: {v}" for k, v in self.headers.items() if k.lower() != "authorization"]
        store.said.append("\n".join([self.path, *shown]).encode())
        fault = store.fault_of(self.command, path)
        if fault is not None:
            self._drain()
            return self._refuse(fault.status, fault.message, fault.headers)
        if path.startswith("/lfs/"):  # signed URLs carry no token
            return self._lfs(path.removeprefix("/lfs/"))
        role = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if role not in (WRITER, READER):
            self._drain()
            return self._refuse(401, "Invalid username or password.")
        if self.command == "POST":
            body = self._body()
            store.said.append(body)
            if role == READER and not path.endswith("validate-yaml") and "paths-info" not in path:
                return self._refuse(403, "You don't have the rights to create a model there.")
            return self._post(path, body)
        return self._get(path)

    # --- writes

    def _post(self, path: str, body: bytes) -> None:
        store = self.store
        if path == "/api/repos/create":
            wish = json.loads(body)
            repo = f"{wish['organization']}/{wish['name']}"
            if repo in store.repos:
                return self._json({"url": f"{store.url}/{repo}"}, 409)
            store.repos[repo] = {".gitattributes": GITATTRIBUTES}
            store.private[repo] = wish.get("visibility") == "private"
            store.commits[repo] = []
            return self._json({"url": f"{store.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        match = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        if match:
            return self._json({"transfer": "basic", "objects": self._batch(json.loads(body))})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|paths-info)/main", path)
        if match is None or match[1] not in store.repos:
            return self._refuse(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        files = store.repos[match[1]]
        if match[2] == "preupload":
            return self._json({"files": [self._mode(f, files) for f in json.loads(body)["files"]]})
        if match[2] == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return self._json([_entry(p, files[p]) for p in wanted if p in files])
        return self._commit(match[1], body)

    def _validate(self, card: str) -> None:
        _, front, _ = card.split("---\n", 2)
        try:
            fine = isinstance(yaml.safe_load(front), dict)
        except yaml.YAMLError:
            fine = False
        errors = [] if fine else [{"message": "front matter is not YAML"}]
        self._json({"errors": errors, "warnings": []}, 200 if fine else 400)

    def _mode(self, file: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        path, size = file["path"], file["size"]
        mode = "lfs" if _is_lfs(path, size) else "regular"
        oid = None
        if path in files:
            data = files[path]
            oid = sha256_of(data) if mode == "lfs" else git_id(data)
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, wish: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        for wanted in wish["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.store.objects:
                href = f"{self.store.url}/lfs/{oid}"
                upload: dict[str, Any] = {"href": href}
                part = self.store.part_bytes
                if part and size > part:
                    upload = {"href": f"{href}/complete", "header": {"chunk_size": str(part)}}
                    for number in range(-(-size // part)):
                        upload["header"][str(number + 1)] = f"{href}/part/{number + 1}"
                answer["actions"] = {"upload": upload, "verify": {"href": f"{href}/verify"}}
            found.append(answer)
        return found

    def _lfs(self, path: str) -> None:
        store = self.store
        oid, _, rest = path.partition("/")
        if rest == "verify":
            said = json.loads(self._body())
            data = store.objects.get(oid)
            fine = data is not None and said == {"oid": oid, "size": len(data)}
            return self._json({}, 200 if fine else 404)
        if rest == "complete":
            self._body()
            pieces = store.parts.pop(oid)
            return self._keep(oid, b"".join(pieces[n] for n in sorted(pieces)))
        data = self._body(oid)
        if len(data) < int(self.headers["Content-Length"]):
            self.close_connection = True  # the client is gone
            return None
        with store.lock:
            store.received[oid] = store.received.get(oid, 0) + len(data)
        if rest.startswith("part/"):
            store.parts.setdefault(oid, {})[int(rest.removeprefix("part/"))] = data
            self._start(200, 0, {"ETag": f'"{len(data)}"'})
            return None
        return self._keep(oid, data)

    def _keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self._refuse(400, "The content does not have this sha256.")
        self.store.objects[oid] = data
        return self._json({})

    def _commit(self, repo: str, body: bytes) -> None:
        files, (header, *operations) = self.store.repos[repo], map(json.loads, body.splitlines())
        new = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "lfsFile":
                if value["oid"] not in self.store.objects:
                    return self._refuse(400, "An LFS object is missing.")
                new[value["path"]] = self.store.objects[value["oid"]]
            else:
                assert operation["key"] == "file", operation
                new[value["path"]] = base64.b64decode(value["content"])
        with self.store.lock:
            files |= {path: self.store.keep(data) for path, data in new.items()}
            self.store.commits[repo].append(Commit(header["value"]["summary"], tuple(new)))
        head = self.store.head(repo)
        url = f"{self.store.url}/{repo}/commit/{head}"
        return self._json({"commitUrl": url, "commitOid": head, "pullRequestUrl": None})

    # --- reads

    def _get(self, path: str) -> None:
        store = self.store
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(tree|revision)/([^/]+))?", path)
        if match and match[1] in store.repos:
            repo, files = match[1], store.repos[match[1]]
            if match[2] == "tree":
                return self._json([_entry(p, data) for p, data in sorted(files.items())])
            siblings = [{"rfilename": p, "size": len(d)} for p, d in sorted(files.items())]
            about = {"id": repo, "sha": store.head(repo), "siblings": siblings, "tags": []}
            return self._json(about | {"private": store.private[repo], "downloads": 0, "likes": 0})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match and match[1] in store.repos:
            repo, name = match[1], match[3]
            found = store.repos[repo].get(name)
            if found is None:
                return self._refuse(404, "Entry not found", {"X-Error-Code": "EntryNotFound"})
            return self._download(repo, name, found)
        return self._refuse(404, "Repository not found", {"X-Error-Code": "RepoNotFound"})

    def _download(self, repo: str, name: str, data: bytes) -> None:
        is_lfs = _is_lfs(name, len(data))
        etag = sha256_of(data) if is_lfs else git_id(data)
        headers = {"X-Repo-Commit": self.store.head(repo), "ETag": f'"{etag}"'}
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{etag}"'}
        status, wanted = 200, self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data, status = data[start:end], 206
        self._start(status, len(data), headers)
        if self.command == "GET":
            self.wfile.write(data)

    # --- bodies

    def _body(self, oid: str = "") -> bytes:
        """What the client sends; of an upload, piece by piece past ``on_upload``."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        left, data = int(self.headers.get("Content-Length", 0)), bytearray()
        while left:
            piece = self.rfile.read(min(left, _CHUNK))
            if not piece:
                break
            data += piece
            left -= len(piece)
            if oid:
                self.store.on_upload(oid, len(data))
        return bytes(data)

    def _drain(self) -> None:
        if self.command in ("POST", "PUT"):
            self._body()

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self._start(status, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def _refuse(
        self, status: int, message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        more = {"X-Error-Message": message} if message else {}
        self._start(status, 0, more | (headers or {}))


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
    if _is_lfs(path, len(data)):
        oid = sha256_of(data)
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def serve_writes(store: HubStore) -> Iterator[HubStore]:
    """Serve until the block ends; ``store.url`` is what HF_ENDPOINT takes."""
    bound = type("BoundHandler", (WritingHandler,), {"store": store, "hub": HubServer})
    server: ThreadingHTTPServer = _QuietServer(("127.0.0.1", 0), bound)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
