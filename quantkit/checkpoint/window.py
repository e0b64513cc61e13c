"""A file to seek in that may lie elsewhere: pieces of it are fetched as they are asked for."""

import os
from collections.abc import Callable

_MOST_AT_ONCE = 16 * 10**6  # bytes


class Window:
    """What `zipfile` needs of a file that it reads: ``read``, ``seek`` and ``tell``.

    No piece is longer than 16 MB, so that nobody sizes a buffer by a number in the file.

    Args:
        n_bytes: the file's size.
        fetch: gives the bytes from a first one to another (exclusive), both within the file.
        tail: of a file that is far away, how many bytes at its end are fetched when one of them is
            asked for. What was fetched of such a file is kept.

    """

    def __init__(self, n_bytes: int, fetch: Callable[[int, int], bytes], tail: int = 0) -> None:
        self.n_bytes = n_bytes
        self.is_far = tail > 0
        self._fetch = fetch
        self._tail = max(0, n_bytes - tail)
        self._kept: list[tuple[int, bytes]] = []
        self._at = 0

    def read_at(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end`` (exclusive), as far as the file has them.

        Raises:
            ValueError: these are too many, or none.

        """
        end = min(end, self.n_bytes)
        if not 0 <= start <= end or end - start > _MOST_AT_ONCE:
            raise ValueError(f"{start} to {end}")
        if not self.is_far:
            return self._fetch(start, end)
        if start < end and self._find(start, end) is None:
            first, last = (self._tail, self.n_bytes) if start >= self._tail else (start, end)
            self._kept.append((first, self._fetch(first, last)))
        return self._find(start, end) or b""

    def prefetch(self, end: int) -> None:
        """Fetch the beginning of a file that is far away in one piece, if it is short enough."""
        if self.is_far and end <= _MOST_AT_ONCE:
            self.read_at(0, end)

    def read(self, n_bytes: int = -1) -> bytes:
        """The next bytes, all that are left if it says no number."""
        end = self.n_bytes if n_bytes < 0 else self._at + n_bytes
        data = self.read_at(self._at, max(self._at, end))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place.

        Raises:
            OSError: it lies before the beginning.

        """
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.n_bytes}[whence]
        if place < 0:
            raise OSError(f"{place} lies before the beginning")
        self._at = place
        return place

    def tell(self) -> int:
        """Where it is."""
        return self._at

    def _find(self, start: int, end: int) -> bytes | None:
        for first, data in self._kept:
            if first <= start and end <= first + len(data):
                return data[start - first : end - first]
        return None
