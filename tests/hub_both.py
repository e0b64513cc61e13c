"""Our server with both sides of the Hub: a checkpoint to read, and repositories to write."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from tests.hub_server import Handler, HubServer, _QuietServer
from tests.hub_writes import HubStore, WritingHandler


class BothHandler(WritingHandler):
    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        reads = self.command in ("GET", "HEAD")
        if reads and (f"/{self.hub.repo_id}/" in f"{path}/"):
            return Handler._answer(self)
        return super()._serve()


@contextmanager
def serve_both(hub: HubServer, store: HubStore) -> Iterator[None]:
    """Serve a checkpoint and a store under one address until the block ends."""
    bound = type("BoundHandler", (BothHandler,), {"store": store, "hub": hub})
    server = _QuietServer(("127.0.0.1", 0), bound)
    hub.url = store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
