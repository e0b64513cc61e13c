"""llama.cpp's way: what ``common/chat.cpp`` hands to a template."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from quantkit.checkpoint.chat.jinja import DATE
from quantkit.checkpoint.chat.program import Program


def llama(template: str, tokens: Mapping[str, str], chat: Mapping[str, Any]) -> str:
    """What llama.cpp gives for a conversation, by ``common_chat_templates_apply``.

    Only ``bos_token`` and ``eos_token`` reach the template, and ``enable_thinking``, which is true,
    the date, and tools where there are any.
    """
    program = _program(template)
    tools = [_tool(tool) for tool in chat.get("tools") or ()]
    messages = [_message(message) for message in chat["messages"]]
    if messages and messages[0]["role"] == "system" and not program.takes_system:
        system, *messages = messages
        if messages:
            messages[0]["content"] = f"{system['content']}\n{messages[0]['content']}"
    if program.takes_objects:
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    context: dict[str, Any] = {
        "messages": _in_parts(messages) if program.takes_only_parts else messages,
        "bos_token": tokens.get("bos_token", ""),
        "eos_token": tokens.get("eos_token", ""),
        "enable_thinking": True,
        "datetime": DATE,
        "date_string": DATE,
    }
    if tools:
        context["tools"] = tools
    if chat["add_generation_prompt"]:
        context["add_generation_prompt"] = True
    return program.render(context)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    kept = {key: function.get(key, {}) for key in ("name", "description", "parameters")}
    kept["description"] = kept["description"] or ""
    return {"type": "function", "function": kept}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message["role"], "content": message.get("content") or ""}
    for key in ("reasoning_content", "name", "tool_call_id"):
        if message.get(key):
            made[key] = message[key]
    calls = []
    for call in message.get("tool_calls") or ():
        function, arguments = call["function"], call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        kept = {"name": function["name"], "arguments": arguments}
        named = {"id": call["id"]} if call.get("id") else {}
        calls.append({"type": "function", "function": kept, **named})
    return made | ({"tool_calls": calls} if calls else {})


@cache
def _program(template: str) -> Program:
    return Program(template)


def _in_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
