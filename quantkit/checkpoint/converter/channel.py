"""Messages between quantkit and the converter's process: a JSON object, and bytes if any."""

import json
import os
import select
import struct
from typing import Any

_FRAME = struct.Struct("<IQ")
_MOST_JSON = 2**30
_MOST_BYTES = 2**36
_PIECE = 2**20


class Channel:
    """One end of two pipes. Either side waits for the other; neither sends unasked."""

    def __init__(self, receive: int, send: int, patience: float | None = None) -> None:
        """Take both ends; ``patience`` is how many seconds without a byte are waited for."""
        self._receive = receive
        self._send = send
        self._patience = patience

    def send(self, message: dict[str, Any], data: Any = b"") -> None:
        """Send a message, and bytes with it (anything with the buffer protocol).

        Raises:
            OSError: nobody is at the other end.

        """
        text = json.dumps(message).encode()
        view = memoryview(data).cast("B")
        self._write(memoryview(_FRAME.pack(len(text), len(view)) + text))
        self._write(view)

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """The next message with its bytes.

        Raises:
            EOFError: the other end is closed.
            TimeoutError: nothing came for too long.

        """
        n_text, n_bytes = _FRAME.unpack(self._read(_FRAME.size))
        if n_text > _MOST_JSON or n_bytes > _MOST_BYTES:
            raise EOFError("a message of the converter's process is not a message")
        message = json.loads(self._read(n_text))
        return message, self._read(n_bytes)

    def close(self) -> None:
        """Close both pipes."""
        for number in (self._receive, self._send):
            os.close(number)

    def _write(self, view: memoryview) -> None:
        while view:
            view = view[os.write(self._send, view) :]

    def _read(self, n_bytes: int) -> bytearray:
        data = bytearray(n_bytes)
        view, done = memoryview(data), 0
        while done < n_bytes:
            if self._patience is not None:
                ready, _, _ = select.select([self._receive], [], [], self._patience)
                if not ready:
                    raise TimeoutError
            count = os.readv(self._receive, [view[done : done + _PIECE]])
            if count == 0:
                raise EOFError("the other end is closed")
            done += count
        return data
