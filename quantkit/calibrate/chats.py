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
_SECONDS = 60  # for one process, whatever a template does


def render_chats(
    checkpoint: Checkpoint, chats: Sequence[Sequence[Mapping[str, Any]]]
) -> list[str | None]:
    """Conversations as text, dates as ``{date}``; None for one that the template refuses.

    Args:
        checkpoint: or a GGUF.
        chats: messages with ``role`` and ``content``.

    Raises:
        CalibrationError: the model has no template.

    """
    template, tokens = _template_of(checkpoint)
    if not template:
        raise CalibrationError(
            f"{checkpoint.path} has no chat template, which --chat renders conversations by; give "
            "text of such conversations with --text."
        )
    jobs = [
        {
            "way": "original",
            "template": template,
            "tokens": tokens,
            "chat": {"messages": messages, "add_generation_prompt": False},
        }
        for messages in chats
    ]
    answers = render(jobs, _SECONDS)
    if not answers:
        raise CalibrationError(
            f"The chat template of {checkpoint.path} does not render {len(jobs)} conversations "
            f"within {_SECONDS} s and 1 GiB; give text of them with --text."
        )
    return [answer.get("text") or None for answer in answers]


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
