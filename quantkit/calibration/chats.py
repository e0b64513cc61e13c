"""Conversations as a model sees them: rendered by its own chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.checkpoint.chat.rendering import render
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.tokenizer.chat_template import (
    named_tokens,
    special_tokens,
    template_metadata,
)
from quantkit.checkpoint.tokenizer.source import read_source
from quantkit.core.errors import CalibrationError

_KEY = "tokenizer.chat_template"
# The same conversation, which a template that knows parts renders alike.
_EITHER_WAY: Sequence[Sequence[Mapping[str, Any]]] = (
    [{"role": "user", "content": "Which?"}],
    [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}],
)
_SECONDS = 60  # for one process, whatever a template does


def render_chats(
    checkpoint: Checkpoint, chats: Sequence[Sequence[Mapping[str, Any]]]
) -> list[str | None]:
    """Conversations as text, dates as ``{date}``; None for one that the template refuses.

    Args:
        checkpoint: or a GGUF.
        chats: messages with ``role`` and ``content``, which is text or a list of parts of text. A
            template that does not know such lists gets their lines in its place.

    Raises:
        CalibrationError: the model has no template.

    """
    template, tokens = _template_of(checkpoint)
    if not template:
        raise CalibrationError(
            f"{checkpoint.path} has no chat template, which --chat needs; give the conversations "
            "as text with --text."
        )
    if any(_has_parts(message) for messages in chats for message in messages):
        one, parts = render([_job(template, tokens, chat) for chat in _EITHER_WAY]) or ({}, {})
        if not one.get("text") or one != parts:
            chats = [[_joined(message) for message in messages] for messages in chats]
    jobs = [_job(template, tokens, messages) for messages in chats]
    answers = render(jobs, _SECONDS)
    if not answers:
        raise CalibrationError(
            f"The chat template of {checkpoint.path} does not render {len(jobs)} conversations "
            f"within {_SECONDS} s and 1 GiB; give text of them with --text."
        )
    return [answer.get("text") or None for answer in answers]


def _job(
    template: str, tokens: Mapping[str, str], messages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    chat = {"messages": messages, "add_generation_prompt": False}
    return {"way": "original", "template": template, "tokens": tokens, "chat": chat}


def _has_parts(message: Mapping[str, Any]) -> bool:
    return isinstance(message["content"], list)


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if not _has_parts(message):
        return message
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


def _template_of(checkpoint: Checkpoint) -> tuple[str, dict[str, str]]:
    """The template and the special tokens that it may name."""
    header = checkpoint.header
    if header is not None:
        return str(header.metadata.get(_KEY, "")), named_tokens(header.metadata)
    own = special_tokens(checkpoint.path)
    if checkpoint.description is not None:
        keys = checkpoint.description.header.metadata
        return str(keys.get(_KEY, "")), named_tokens(keys) | own
    keys = template_metadata(read_source(checkpoint.path, checkpoint.config))
    return str(keys.get(_KEY, "")), own
