"""Calibration text: the user's, or one that every Python carries; cut into chunks of tokens."""

import importlib.util
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.calibration.chats import render_chats
from quantkit.calibration.sources import Conversation, Piece, TextSource, pieces_of
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.text_config import text_config
from quantkit.checkpoint.tokenizer.encode import encode_pieces
from quantkit.core.errors import CalibrationError
from quantkit.core.files import read_file
from quantkit.core.topics import other_paragraphs

BUILT_IN = "built-in text (Python's help topics and standard library)"
ON_BUILT_IN = (
    "Calibrating on the built-in text: English about Python, and Python. For a model of other "
    "languages or uses, give text of its kind with --text."
)
RANDOM = "random tokens"
_FEWEST_CHUNKS = 2  # as llama-imatrix wants
_RANDOM_SEED = 0

# Sources of the built-in text: prose in comments and docstrings beside code of many kinds.
_MODULES = """
argparse ast asyncio.events asyncio.tasks base64 bisect calendar cmd codecs collections
configparser contextlib copy csv dataclasses datetime decimal difflib dis doctest
email.message enum fractions functools gettext graphlib gzip heapq html.parser
http.client http.cookiejar inspect ipaddress json.decoder json.encoder locale logging
mailbox mimetypes numbers optparse pathlib pdb pickle pickletools platform plistlib
pprint queue random sched selectors shelve shlex shutil smtplib socket socketserver ssl
statistics string subprocess symtable tarfile tempfile textwrap threading timeit
tokenize trace traceback turtle types typing unittest.case unittest.mock urllib.parse
urllib.request uuid wave weakref webbrowser xml.dom.minidom xml.etree.ElementTree
zipfile
"""
# Characters per token that are encoded at first: twice what a large vocabulary needs for English,
# so that where the text is cut off lies far beyond the last token that is used.
CHARACTERS = 8
_PIECE = 4000  # characters of one kind before the other kind's turn


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a model is run over: token ids, shape (chunks, context), and where they came from.

    ``vocabulary`` is how many tokens there are; 0 where nobody says.
    """

    tokens: NDArray[np.int64]
    names: tuple[str, ...]
    vocabulary: int = 0

    @property
    def chunks(self) -> int:
        """How many sequences."""
        return int(self.tokens.shape[0])

    @property
    def n_different(self) -> int:
        """How many tokens of the vocabulary occur."""
        return int(np.unique(self.tokens).size)

    @property
    def context(self) -> int:
        """Tokens per sequence."""
        return int(self.tokens.shape[1])


def make_corpus(
    checkpoint: Checkpoint, sources: Sequence[TextSource], chunks: int, context: int
) -> Corpus:
    """Cut text into at most ``chunks`` sequences of ``context`` tokens, as llama-imatrix does.

    Its ``compute_imatrix`` puts the beginning-of-sequence token in front of the whole text, and
    later in place of each sequence's first token; so does this, to see the same activations.

    Args:
        checkpoint: its tokenizer is used.
        sources: files; the built-in text where there are none.
        chunks: the most sequences.
        context: tokens per sequence.

    Raises:
        CalibrationError: a file cannot be used, or there is too little text.
        TokenizerError: the checkpoint's tokenizer cannot be used.

    """
    most = chunks * context * CHARACTERS
    pieces, names = read_sources(checkpoint, sources, most)
    encoded = encode_pieces(checkpoint.path, checkpoint.config, within(pieces, most))
    if len(encoded.ids) < chunks * context and sum(len(piece.text) for piece in pieces) > most:
        encoded = encode_pieces(checkpoint.path, checkpoint.config, pieces)
    ids = encoded.ids
    if encoded.bos is not None and ids[:1] != [encoded.bos]:
        ids = [encoded.bos, *ids]
    available = len(ids) // context
    if available < _FEWEST_CHUNKS:
        where = ", ".join(names) if sources else "The built-in text"
        raise CalibrationError(
            f"{where} has {len(ids)} tokens, but calibrating takes at least "
            f"{_FEWEST_CHUNKS * context} ({_FEWEST_CHUNKS} chunks of {context}); give more text "
            "or a smaller --context."
        )
    count = min(chunks, available)
    tokens = np.array(ids[: count * context], np.int64).reshape(count, context)
    if encoded.bos is not None:
        tokens[:, 0] = encoded.bos
    vocabulary = text_config(checkpoint.config).get("vocab_size")
    return Corpus(tokens, names, vocabulary if isinstance(vocabulary, int) else 0)


def read_sources(
    checkpoint: Checkpoint, sources: Sequence[TextSource], most: int
) -> tuple[list[Piece], tuple[str, ...]]:
    """The text of some sources, or the built-in one where there are none; and their names.

    Args:
        checkpoint: or a GGUF; conversations are rendered by its chat template.
        sources: files.
        most: characters that are needed; of files that are mixed there may be no more.

    Raises:
        CalibrationError: a file cannot be used, or there is no template for conversations.

    """
    if not sources:
        return [Piece(built_in_text())], (BUILT_IN,)

    def render(chats: Sequence[Conversation]) -> list[str | None]:
        return render_chats(checkpoint, chats)

    return pieces_of(sources, render, most), tuple(source.name for source in sources)


def within(pieces: Sequence[Piece], most: int) -> list[Piece]:
    """The pieces up to so many characters, the last one cut."""
    chosen = []
    for piece in pieces:
        if most <= 0:
            break
        chosen.append(Piece(piece.text[:most], piece.special))
        most -= len(piece.text)
    return chosen


def random_corpus(vocab_size: int, chunks: int, context: int) -> Corpus:
    """Tokens drawn evenly, always the same: for measuring speed, and models without a tokenizer.

    What a model makes of noise says little about what it makes of language.
    """
    tokens = np.random.default_rng(_RANDOM_SEED).integers(0, vocab_size, (chunks, context))
    return Corpus(tokens.astype(np.int64), (RANDOM,))


def built_in_text() -> str:
    """English about Python in turns with Python, some 2 MB, the same for one Python version.

    It needs no network and no file of ours. It is weak where text of the world is wide: no other
    language, no dialogue, no fiction, hardly any mathematics. It lacks the topics that artifacts
    are measured on.
    """
    prose = map(textwrap.dedent, other_paragraphs())
    kinds = (_pieces(prose), _pieces(_sources()))
    return "\n\n".join(piece for pair in zip_longest(*kinds) for piece in pair if piece)


def _sources() -> Iterator[str]:
    for name in _MODULES.split():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            yield from read_file(Path(spec.origin)).decode().split("\n\n\n")


def _pieces(parts: Iterator[str]) -> Iterator[str]:
    """Parts joined until they are long enough."""
    held: list[str] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _PIECE:
            yield "\n\n".join(held)
            held.clear()
    if held:
        yield "\n\n".join(held)
