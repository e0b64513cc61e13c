"""transformers' way: ``utils/chat_template_utils.py`` of 4.57 and 5.23."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantkit.checkpoint.chat.jinja import make_environment


def original(template: str, tokens: Mapping[str, str], chat: Mapping[str, Any]) -> str:
    """What transformers' ``apply_chat_template`` gives for a conversation.

    Args:
        template: in jinja2.
        tokens: the tokenizer's special tokens by name: ``bos_token`` and so on.
        chat: ``messages``, ``add_generation_prompt``, and perhaps ``tools`` and ``documents``.

    """
    compiled = _original(template)
    messages = [_without_none(message) for message in chat["messages"]]
    context = {**tokens, "tools": chat.get("tools"), "documents": chat.get("documents")}
    text: str = compiled.render(
        context, messages=messages, add_generation_prompt=chat["add_generation_prompt"]
    )
    return text


@cache
def _original(template: str) -> Any:
    environment = make_environment(ImmutableSandboxedEnvironment)
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _without_none(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers 5 hands a message on, with its reasoning under the names that are in use."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = kept.get("reasoning_content")
    return kept if reasoning is None else {"thinking": reasoning, **kept}
