"""What a text is made of: files of text and of conversations, one after the other or mixed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from quantkit.core.documents import parse_json
from quantkit.core.errors import CalibrationError
from quantkit.core.files import MOST_TEXT, read_file
from quantkit.core.printable import quoted

PIECE = 1000  # characters of one source before another's turn
_AT_ONCE = 64  # conversations that are rendered by one process
_FIX = "give a text file"
_ONE_PER_LINE = "give one conversation per line, each as JSON of its own (JSONL)"
# How datasets in ShareGPT's form call who speaks.
_ROLES = {"human": "user", "gpt": "assistant"}

Conversation: TypeAlias = Sequence[dict[str, Any]]
# Renders conversations as the model sees them; None for one that its template refuses.
Renderer: TypeAlias = Callable[[Sequence[Conversation]], Sequence[str | None]]


class Piece(NamedTuple):
    """Some text; in a ``special`` one special tokens are what they look like, not their letters."""

    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class TextSource:
    """A file of text, or of conversations: one per line, as JSON.

    ``weight`` is its share beside the others', in characters. Where no source has one, they follow
    each other, each whole.
    """

    file: Path
    is_chat: bool = False
    weight: float | None = None

    @property
    def name(self) -> str:
        """What cards and manifests call it."""
        words = ["conversations"] if self.is_chat else []
        words += [f"weight {self.weight:g}"] if self.weight is not None else []
        return f"{self.file} ({', '.join(words)})" if words else str(self.file)


def parse_source(text: str, option: str) -> TextSource:
    """A source from ``FILE`` or ``FILE:WEIGHT``, as ``--text`` and ``--chat`` take it.

    Raises:
        CalibrationError: the weight is no positive number.

    """
    is_chat = option == "--chat"
    name, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return TextSource(Path(text), is_chat)
    try:
        share = float(weight)
    except ValueError:
        return TextSource(Path(text), is_chat)
    if not 0 < share < float("inf"):
        raise CalibrationError(f"{option} {text}: a weight is a number above 0, such as 2 or 0.5.")
    return TextSource(Path(name), is_chat, share)


def parse_sources(text: Sequence[str] | None, chat: Sequence[str] | None) -> tuple[TextSource, ...]:
    """What ``--text`` and ``--chat`` name.

    Raises:
        CalibrationError: as `parse_source` does.

    """
    named = [("--text", name) for name in text or ()] + [("--chat", name) for name in chat or ()]
    return tuple(parse_source(name, option) for option, name in named)


def pieces_of(sources: Sequence[TextSource], render: Renderer, most: int) -> list[Piece]:
    """The text that sources make together.

    Files of text without weights are joined whole. Otherwise pieces are taken in turns, so that
    whatever is used of the beginning has the shares that were asked for, until the first source is
    used up that is to be mixed.

    Args:
        sources: at least one.
        render: for conversations.
        most: characters, after which no further piece is needed.

    Raises:
        CalibrationError: a file cannot be read, or is not what it should be.

    """
    if not any(source.is_chat or source.weight is not None for source in sources):
        return [Piece("\n\n".join(_some_text(source.file) for source in sources))]
    streams = [_stream(source, render) for source in sources]
    mixed = any(source.weight is not None for source in sources)
    chosen: list[Piece] = []
    for piece in _in_turns(sources, streams) if mixed else _one_by_one(streams):
        if most <= 0:
            break
        chosen.append(piece)
        most -= len(piece.text)
    return chosen


def read_text(file: Path) -> str:
    """A text file without the newline at its end, which llama.cpp's tools drop.

    Raises:
        CalibrationError: it cannot be read, or is not UTF-8.

    """
    raw = read_file(file, most=MOST_TEXT, error=CalibrationError, fix=_FIX)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise CalibrationError(f"{file} is not UTF-8 text; convert it first.") from None
    return text.removesuffix("\n")


def _some_text(file: Path) -> str:
    text = read_text(file)
    if not text.strip():
        raise CalibrationError(f"{file} is empty; give text, or leave it out.")
    return text


def _cut(text: str) -> Iterator[str]:
    """A text in pieces that end with a paragraph, else with a line, else with a word."""
    start = 0
    while start < len(text):
        least, most = start + PIECE, start + 2 * PIECE
        ends = (text.find(mark, least, most) + len(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > least), least)
        yield text[start:end]
        start = end


def _in_turns(sources: Sequence[TextSource], streams: Sequence[Iterator[Piece]]) -> Iterator[Piece]:
    """Pieces of the source that has had least of its share."""
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    taken = [0.0] * len(streams)
    while True:
        place = min(range(len(streams)), key=lambda index: taken[index] / weights[index])
        piece = next(streams[place], None)
        if piece is None:
            return
        taken[place] += len(piece.text)
        yield piece


def _one_by_one(streams: Iterable[Iterator[Piece]]) -> Iterator[Piece]:
    for stream in streams:
        yield from stream


def _stream(source: TextSource, render: Renderer) -> Iterator[Piece]:
    if not source.is_chat:
        yield from map(Piece, _cut(f"{_some_text(source.file)}\n\n"))
        return
    lines = list(_conversations(source.file))
    for start in range(0, len(lines), _AT_ONCE):
        some = lines[start : start + _AT_ONCE]
        for (number, _), text in zip(some, render([chat for _, chat in some]), strict=True):
            if text is None:
                raise CalibrationError(
                    f"{source.file}, line {number}: the model's chat template refuses this "
                    "conversation; remove it, or correct the roles and their order."
                )
            yield Piece(text, special=True)


def _conversations(file: Path) -> Iterator[tuple[int, Conversation]]:
    """The conversations of a file with the numbers of their lines.

    A line is a list of messages, or has it as ``messages`` or ``conversations``; a message has
    ``role`` and ``content``, or ``from`` and ``value``; a content is text, or parts that are text.
    """
    found = 0
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        document = parse_json(line.encode(), where, error=CalibrationError, fix=_ONE_PER_LINE)
        if isinstance(document, dict):
            document = document.get("messages", document.get("conversations"))
        messages = [_message(m, where) for m in document] if isinstance(document, list) else []
        if not messages or None in messages:
            raise CalibrationError(
                f'{where} is not a conversation; each line must be {{"messages": '
                '[{"role": "user", "content": "..."}, ...]}.'
            )
        found += 1
        yield number, [message for message in messages if message is not None]
    if not found:
        raise CalibrationError(f"{file} has no conversation; give one per line, as JSON.")


def _message(message: Any, where: str) -> dict[str, Any] | None:
    if not isinstance(message, dict):
        return None
    if "from" in message and "role" not in message:
        message = {"role": message["from"], "content": message.get("value")}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not (isinstance(content, str) or _are_parts(content, where)):
        return None
    return {**message, "role": _ROLES.get(role, role)}


def _are_parts(content: Any, where: str) -> bool:
    """Whether a content is a list of parts, all of text: ``{"type": "text", "text": "..."}``."""
    if not isinstance(content, list) or not content:
        return False
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise CalibrationError(
                f"{where}: a part of a message is of the type {quoted(kind)}, and calibration "
                "takes only text; remove such messages."
            )
        if kind is None or not isinstance(part.get("text"), str):
            return False
    return True
