"""Bytes of files on the Hub, in the order asked for, fetched ahead over several connections."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.remote import RemoteRepo, fetch_range

CONNECTIONS = 8
# Large enough that a request's round trip is little beside its bytes, and that a model of 281 GB
# takes fewer requests than the Hub allows in the time that it takes.
_LARGEST_PIECE = 16 * 2**20
_SMALLEST_PIECE = 64 * 1024
# What a connection is worth waiting for in a build of hours: some two minutes of bad answers.
_ATTEMPTS = 10

# What `ReadAhead` holds at most: a piece per connection, and the one that is being taken from.
MOST_BYTES = (CONNECTIONS + 1) * _LARGEST_PIECE


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``start`` to ``end`` (exclusive) of a file."""

    name: str
    start: int
    end: int


class ReadAhead:
    """Gives the bytes of some ranges, one after the other, as if they were one file.

    It holds no more than ``n_bytes``, nor than `MOST_BYTES`.
    """

    def __init__(self, repo: RemoteRepo, ranges: Sequence[Range], n_bytes: int) -> None:
        size = min(_LARGEST_PIECE, max(_SMALLEST_PIECE, n_bytes // (CONNECTIONS + 1)))
        self._repo = repo
        self._pieces = _cut(ranges, size)
        self._pool = ThreadPoolExecutor(CONNECTIONS, "fetch")
        self._waiting: deque[Future[bytearray]] = deque()
        self._current = memoryview(b"")
        self._stopped = Event()
        for _ in range(CONNECTIONS):
            self._ask()

    def close(self) -> None:
        """Stop asking."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """The next bytes, 1-D.

        Raises:
            SourceChangedError: a file changed on the server.
            CheckpointError: the server fails for good.

        """
        out = np.empty(n_bytes, np.uint8)
        done = 0
        while done < n_bytes:
            if not self._current:
                self._current = memoryview(b"")  # lets go of the piece before the next is here
                self._current = memoryview(self._waiting.popleft().result())
                self._ask()
            part = self._current[: n_bytes - done]
            out[done : done + len(part)] = part
            self._current = self._current[len(part) :]
            done += len(part)
        return out

    def _ask(self) -> None:
        """Have one more piece fetched, if there is one."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._waiting.append(self._pool.submit(self._fetch, piece))

    def _fetch(self, piece: Range) -> bytearray:
        return fetch_range(
            self._repo, piece.name, piece.start, piece.end, attempts=_ATTEMPTS, pause=self._pause
        )

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise CancelledError


def _cut(ranges: Sequence[Range], size: int) -> Iterator[Range]:
    for whole in ranges:
        for start in range(whole.start, whole.end, size):
            yield Range(whole.name, start, min(start + size, whole.end))
