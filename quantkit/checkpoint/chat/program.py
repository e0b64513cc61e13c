"""A template, and what llama.cpp finds out of it by trying."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from quantkit.checkpoint.chat.engine import compile_template
from quantkit.checkpoint.chat.watched import Content, Parts, Watched


class Program:
    """A template with what llama.cpp finds out of it by trying (``caps_get``)."""

    def __init__(self, template: str) -> None:
        self._template = compile_template(template)

    def render(self, context: Mapping[str, Any]) -> str:
        """The text that the template makes of what it is handed."""
        text: str = self._template.render(context)
        return text

    def _try(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> str | None:
        context = {"messages": list(messages), "tools": list(tools), "add_generation_prompt": True}
        try:
            return self.render(context | {"bos_token": "", "eos_token": ""})
        except Exception:  # noqa: BLE001 - a template may fail in any way
            return None

    @cached_property
    def takes_system(self) -> bool:
        """Whether the text of a system message is looked at."""
        system = Watched({"role": "system", "content": "System message"})
        self._try([system, {"role": "user", "content": "User message"}])
        return "content" in system.seen

    @cached_property
    def takes_objects(self) -> bool:
        """Whether the arguments of a call are looked into."""
        arguments = Watched({"arg": "value"})
        function = {"name": "tool1", "arguments": arguments}
        call = {"id": "call00001", "type": "function", "function": function}
        messages = [
            {"role": "user", "content": "User message"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "Tool response", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "The tool response was 'tool response'"},
            {"role": "user", "content": "User message"},
        ]
        parameters = {
            "type": "object",
            "properties": {"arg": {"type": "string", "description": "Arg description"}},
            "required": ["arg"],
        }
        described = {"name": "tool1", "description": "Tool description", "parameters": parameters}
        tool = {"name": "tool", "type": "function", "function": described}
        return self._try(messages, [tool]) is not None and "arg" in arguments.seen

    @cached_property
    def takes_only_parts(self) -> bool:
        """Whether a message's text must come as a list of parts."""
        text = Content("STRING_MARKER")
        text.ways = set()
        rendered = self._try([{"role": "user", "content": text}])
        as_parts = "parts" in text.ways
        as_text = rendered is not None and not (as_parts and text not in rendered)
        if "is string" in text.ways:
            parts = Parts()
            parts.ways = set()
            done = self._try([{"role": "user", "content": parts}])
            as_parts |= done is not None and "parts" in parts.ways
        return as_parts and not as_text
