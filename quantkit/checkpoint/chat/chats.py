"""Conversations with which a chat template is tried."""

from collections.abc import Mapping
from typing import Any

_SYSTEM = {"role": "system", "content": "You are brief."}
_FIRST = {"role": "user", "content": 'What is "2 + 2"?\n Und ö?'}
_ANSWER = {"role": "assistant", "content": "It's 4."}
_NEXT = {"role": "user", "content": "And 3 + 3?"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers, wie gewünscht.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "number", "description": "the first"},
                "b": {"type": "number", "enum": [1, 2.5], "description": "the second's"},
            },
            "required": ["a", "b"],
        },
    },
}
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {
        "name": "add",
        "arguments": {"a": 2, "b": 2.5, "why": 'ö "so"', "all": [True, None]},
    },
}
_CALLS = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "4.5"}
_REASONED = {"role": "assistant", "content": "4.", "reasoning_content": "Two and two."}


def _chat(*messages: Any, tools: Any = None, ask: bool = True) -> Mapping[str, Any]:
    return {"messages": list(messages), "tools": tools, "add_generation_prompt": ask}


CHATS: Mapping[str, Mapping[str, Any]] = {
    "one message": _chat(_FIRST),
    "no generation prompt": _chat(_FIRST, _ANSWER, ask=False),
    "several turns": _chat(_FIRST, _ANSWER, _NEXT),
    "a system message": _chat(_SYSTEM, _FIRST),
    "a system message and several turns": _chat(_SYSTEM, _FIRST, _ANSWER, _NEXT),
    "a system message in the middle": _chat(_FIRST, _ANSWER, _SYSTEM, _NEXT),
    "empty messages": _chat(
        {"role": "user", "content": ""}, {"role": "assistant", "content": ""}, _NEXT
    ),
    "an empty system message": _chat({"role": "system", "content": ""}, _FIRST),
    "spaces around a message": _chat({"role": "user", "content": "\n  Hi there. \n"}),
    "tools": _chat(_FIRST, tools=[_TOOL]),
    "tools and a system message": _chat(_SYSTEM, _FIRST, tools=[_TOOL, _TOOL]),
    "a tool's result": _chat(_FIRST, _CALLS, _RESULT, tools=[_TOOL]),
    "turns after a tool's result": _chat(_FIRST, _CALLS, _RESULT, _ANSWER, _NEXT, tools=[_TOOL]),
    "reasoning": _chat(_FIRST, _REASONED, _NEXT),
}
