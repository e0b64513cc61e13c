"""The file that holds a reference's log-probabilities over a text.

It is the file that ``llama-perplexity --kl-divergence-base`` writes and reads (llama.cpp's
``tools/perplexity/perplexity.cpp``): a mark, three int32 (context, vocabulary, windows), the
tokens, then of each window the packed rows of its scored positions. Rows are streamed, never all
in memory.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import SmokeError
from quantkit.core.files import open_file
from quantkit.verification.divergence import pack_log_probs, row_words

_MARK = b"_logits_"
_HEADER = struct.Struct("<8s3i")
_BLOCK = 32
_MOST_TOKEN_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class RecordedText:
    """A text in windows of tokens: shape (windows, context); the first token is not yet BOS."""

    tokens: NDArray[np.int32]
    n_vocab: int

    @property
    def n_windows(self) -> int:
        """How many windows."""
        return len(self.tokens)

    @property
    def context(self) -> int:
        """Tokens per window."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """The first scored position: half a window is context only, as in llama-perplexity."""
        return self.context // 2

    @property
    def n_scored(self) -> int:
        """Scored positions per window: the last one has no token after it."""
        return self.context - 1 - self.first

    @property
    def window_bytes(self) -> int:
        """Bytes of one window's rows in a reference file."""
        return self.n_scored * row_words(self.n_vocab) * 2

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole reference file."""
        return _HEADER.size + self.tokens.nbytes + self.n_windows * self.window_bytes


def write_header(file: BinaryIO, text: RecordedText) -> None:
    """Everything before the rows."""
    file.write(_HEADER.pack(_MARK, text.context, text.n_vocab, text.n_windows))
    file.write(text.tokens.astype("<i4").tobytes())


def write_window(file: BinaryIO, logits: NDArray[np.float32]) -> None:
    """The rows of one window; shape (scored positions, vocabulary)."""
    for start in range(0, len(logits), _BLOCK):
        file.write(pack_log_probs(logits[start : start + _BLOCK]).tobytes())


def read_text(file: Path) -> RecordedText:
    """The text that a reference file was made with.

    Raises:
        SmokeError: it is not such a file, or cut short.

    """
    with open_file(file, error=SmokeError, fix="measure it again") as stream:
        try:
            start = stream.read(_HEADER.size)
            if len(start) < _HEADER.size or start[:8] != _MARK:
                raise SmokeError(f"{file} holds no log-probabilities.")
            _, context, n_vocab, n_windows = _HEADER.unpack(start)
            n_bytes = 4 * context * n_windows
            sound = min(context, n_vocab, n_windows) >= 1 and n_bytes <= _MOST_TOKEN_BYTES
            raw = stream.read(n_bytes) if sound else b""
        except OSError as error:
            raise SmokeError(f"{file} cannot be read: {error.strerror}.") from None
    if not sound or len(raw) < n_bytes:  # perhaps in the middle of a number
        raise SmokeError(f"{file} is cut short.")
    tokens = np.frombuffer(raw, "<i4").astype(np.int32)
    text = RecordedText(tokens.reshape(n_windows, context), n_vocab)
    if file.stat().st_size < text.file_bytes:
        raise SmokeError(f"{file} is cut short.")
    return text


def read_window(file: Path, text: RecordedText, index: int) -> NDArray[np.uint16]:
    """The packed rows of one window, mapped: shape (scored positions, ``row_words``)."""
    offset = _HEADER.size + text.tokens.nbytes + index * text.window_bytes
    shape = (text.n_scored, row_words(text.n_vocab))
    return np.memmap(file, "<u2", "r", offset, shape)
