"""The program that renders chat templates: in jinja2's sandbox, in a process of its own.

It knows two ways. `original` is transformers' (``utils/chat_template_utils.py``, 4.57 and 5.23).
`llama` is what the engine of llama.cpp makes of a template (``common/jinja/`` and
``common/chat.cpp`` at the version in vendor/manifest.toml): the engine is not part of
llama-cpp-python, so its ways are written down here, as jinja2 with other filters, tests, methods
and operators. tests/parity/test_chat_templates.py holds them to the engine itself.
Not written down: the engine's macros see the variables of their caller, and it has no ``self``.

The sandbox keeps a template from Python's objects, not from counting for hours or filling the
memory; therefore the process, whose time `rendering` limits. It imports nothing of quantkit.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import ChainableUndefined, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY = 2**30
DATE = "{date}"  # what both ways take for today, whatever the form
_SPACES = " \t\n\v\f\r"


class _Generation(Extension):
    """``{% generation %}``, with which transformers marks what an assistant said: no text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise TemplateError(message)


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


def _environment(kind: type[ImmutableSandboxedEnvironment], **options: Any) -> Any:
    environment = kind(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], **options
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda _format: DATE
    return environment


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
    environment = _environment(ImmutableSandboxedEnvironment)
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _without_none(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers 5 hands a message on, with its reasoning under the names that are in use."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = kept.get("reasoning_content")
    return kept if reasoning is None else {"thinking": reasoning, **kept}


# --- llama.cpp's messages ----------------------------------------------------------------------


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


class _Watched(dict[str, Any]):
    """A dict that knows which of its keys were looked at."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def items(self) -> Any:
        self.seen.update(self)
        return super().items()


class _Content(str):
    """A message's text that knows whether it was taken for a list, or asked whether it is text."""

    ways: set[str]


class _Parts(list[Any]):
    """The same, of a message's parts."""

    ways: set[str]


class _Program:
    """A template with what llama.cpp finds out of it by trying (``caps_get``)."""

    def __init__(self, template: str) -> None:
        self._template = _compile(template)

    def render(self, context: Mapping[str, Any]) -> str:
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
        system = _Watched({"role": "system", "content": "System message"})
        self._try([system, {"role": "user", "content": "User message"}])
        return "content" in system.seen

    @cached_property
    def takes_objects(self) -> bool:
        """Whether the arguments of a call are looked into."""
        arguments = _Watched({"arg": "value"})
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
        text = _Content("STRING_MARKER")
        text.ways = set()
        rendered = self._try([{"role": "user", "content": text}])
        as_parts = "parts" in text.ways
        as_text = rendered is not None and not (as_parts and text not in rendered)
        if "is string" in text.ways:
            parts = _Parts()
            parts.ways = set()
            done = self._try([{"role": "user", "content": parts}])
            as_parts |= done is not None and "parts" in parts.ways
        return as_parts and not as_text


@cache
def _program(template: str) -> _Program:
    return _Program(template)


def _in_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


# --- llama.cpp's engine ------------------------------------------------------------------------


class UnreadableError(Exception):
    """The engine's lexer or parser does not take the template."""


_ESCAPES = frozenset("ntrbfv\\'\"")
_STATEMENTS = frozenset(
    [
        "set",
        "endset",
        "if",
        "elif",
        "else",
        "endif",
        "macro",
        "endmacro",
        "for",
        "endfor",
        "break",
        "continue",
        "call",
        "endcall",
        "filter",
        "endfilter",
        "generation",
        "endgeneration",
    ]
)
_WORDS_BEFORE_VALUES = frozenset(["else", "in", "not", "and", "or", "is", "if"])


def check_syntax(template: str) -> None:
    """Refuse what the engine's lexer and parser refuse though jinja2 takes it.

    Raises:
        UnreadableError: naming the first such thing.

    """
    environment = _environment(ImmutableSandboxedEnvironment)
    before = ""
    for _line, kind, value in environment.lex(template):
        if kind == "string":
            for escape in re.findall(r"\\(.)", value, re.S):
                if escape not in _ESCAPES:
                    raise UnreadableError(f"the escape \\{escape}")
        elif kind in ("block_begin", "variable_begin", "comment_begin") and value.endswith("+"):
            raise UnreadableError(value)
        elif kind in ("block_end", "variable_end") and value.lstrip().startswith("+"):
            raise UnreadableError(value.strip())
        elif kind == "raw_begin":
            raise UnreadableError("{% raw %}")
        elif kind == "name" and before == "block_begin" and value not in _STATEMENTS:
            raise UnreadableError(f"{{% {value} %}}")
        elif kind == "name" and not value.isascii():
            raise UnreadableError(f"the name {value}")
        elif kind == "operator" and value in ("**", "//"):
            raise UnreadableError(f"the operator {value}")
        elif kind == "operator" and value in "+-" and before in _WORDS_BEFORE_VALUES:
            raise UnreadableError(f"the sign in '{before} {value}'")
        elif kind in ("integer", "float") and not re.fullmatch(r"\d+(\.\d+)?", value):
            raise UnreadableError(f"the number {value}")
        if kind != "whitespace":
            before = value if kind == "name" and before != "operator ." else kind
            before = "operator ." if kind == "operator" and value == "." else before
    tree = environment.parse(template)
    for node in tree.find_all((nodes.For, nodes.Tuple, nodes.AssignBlock, nodes.Call)):
        if isinstance(node, nodes.For) and node.recursive:
            raise UnreadableError("a recursive loop")
        if isinstance(node, nodes.Tuple) and len(node.items) < 2:
            raise UnreadableError("a tuple of less than two")
        if isinstance(node, nodes.AssignBlock) and node.filter is not None:
            raise UnreadableError("{% set %} with a filter")
        if isinstance(node, nodes.Call) and node.dyn_kwargs is not None:
            raise UnreadableError("** in a call")


class _Undefined(ChainableUndefined):
    """What is not there: its members are not there either, it has no elements and is no text."""

    def __html__(self) -> str:
        return ""


def _fail(what: str) -> Any:
    raise TemplateRuntimeError(what)


def _kind(value: Any) -> str:
    for kind, types in _KINDS:
        if isinstance(value, types):
            return kind
    return "function"


_KINDS: tuple[tuple[str, Any], ...] = (
    ("undefined", Undefined),
    ("bool", bool),
    ("int", int),
    ("float", float),
    ("str", str),
    ("list", list | tuple),
    ("dict", Mapping | Namespace),
)


def _text(value: Any) -> str:
    """A value as text: ``as_string``."""
    if isinstance(value, Undefined):
        return _fail("Undefined is not a string value")  # type: ignore[no-any-return]
    if isinstance(value, float):
        digits = f"{value:.6f}".rstrip("0")
        return digits + "0" if digits.endswith(".") else digits
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_repr, value))
        if isinstance(value, tuple):
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        return f"[{inner}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_repr(k)}: {_repr(v)}" for k, v in value.items()) + "}"
    return str(value)


def _repr(value: Any) -> str:
    if isinstance(value, str):
        return _json_of(value, -1, ", ", ": ") if "'" in value else f"'{value}'"
    return "Undefined" if isinstance(value, Undefined) else _text(value)


def _printed(value: Any) -> str:
    """What ``{{ value }}`` leaves: nothing of None and objects, of lists their elements."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return _text(value)
    if isinstance(value, list | tuple):
        return "".join(map(_printed, value))
    return ""


def _json_of(value: Any, indent: int, between: str, after_key: str, level: int = 0) -> str:
    if value is None or isinstance(value, Undefined):
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, list | tuple | Mapping):
        return "null"
    brackets, parts = "[]", []
    if isinstance(value, Mapping):
        brackets = "{}"
        for key, item in value.items():
            shown = _json_of(item, indent, between, after_key, level + 1)
            parts.append(_json_of(_text(key), indent, between, after_key) + after_key + shown)
    else:
        parts = [_json_of(item, indent, between, after_key, level + 1) for item in value]
    if not parts:
        return brackets
    line = "\n" if indent >= 0 else ""
    pad, inner = " " * (max(indent, 0) * level), " " * (max(indent, 0) * (level + 1))
    body = (between + line + inner).join(parts)
    return brackets[0] + line + inner + body + line + pad + brackets[1]


def _llama_json(
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: Any = False,
) -> str:
    if sort_keys:
        _fail("tojson sort_keys=true not implemented")
    width = indent if isinstance(indent, int) and not isinstance(indent, bool) else -1
    between, after_key = ", " if width < 0 else ",", ": "
    if isinstance(separators, list | tuple):
        between, after_key = (
            [*separators, between, after_key][:2] if separators else (between, ": ")
        )
    text = _json_of(value, width, between, after_key)
    return (
        "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text) if ensure_ascii else text
    )


def _default(value: Any, *rest: Any, boolean: Any = False) -> Any:
    if isinstance(value, str):
        other, boolean = rest[0] if rest else "", rest[1] if len(rest) > 1 else boolean
        return other if boolean and not value else value
    if not rest:
        _fail("Function 'default' expected between 2 and 3 arguments")
    boolean = rest[1] if len(rest) > 1 else boolean
    missing = not value if boolean else value is None or isinstance(value, Undefined)
    return rest[0] if missing else value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _from_bytes(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _ascii(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: "".join(change(c) if c.isascii() else c for c in text)


def _capitalize(text: str) -> str:
    return _ascii(str.upper)(text[:1]) + _ascii(str.lower)(text[1:])


def _title(text: str) -> str:
    return "".join(
        part if part.isspace() else _capitalize(part)
        for part in re.split(r"([ \t\n\v\f\r]+)", text)
    )


def _starts(text: str, part: Any) -> bool:
    return text.startswith(part) if isinstance(part, str) else bool(_fail("expected a string"))


def _ends(text: str, part: Any) -> bool:
    return text.endswith(part) if isinstance(part, str) else bool(_fail("expected a string"))


def _split(text: str, by: Any = " ", most: int = -1) -> list[str]:
    return text.split(by, most)


def _rsplit(text: str, by: Any = " ", most: int = -1) -> list[str]:
    return text.rsplit(by, most)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    if count > 0:
        _fail("String replace with count argument not implemented")
    return text.replace(old, new)


def _format(text: str, *values: Any) -> str:
    given = iter(values)
    if re.search(r"\{(?!\})", text):
        _fail("format() only supports simple '{}' placeholders")
    return re.sub(r"\{\}", lambda _: _text(next(given)), text)


def _int(text: str, default: Any = 0, base: int = 10) -> int:
    found = re.match(r"\s*[+-]?\d+", text) if base == 10 else None
    return int(found[0]) if found else int(default)


def _float(text: str, default: Any = 0.0) -> float:
    found = re.match(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
    return float(found[0]) if found else float(default)


def _indent(text: str, width: Any = 4, first: Any = False, blank: Any = False) -> str:
    pad = width if isinstance(width, str) else " " * width
    lines = text.split("\n")
    ends = text.endswith("\n")
    made: list[str] = []
    for number, line in enumerate(lines[:-1] if ends else lines):
        padded = first if not number else bool(line) or blank
        made.append(pad + line if padded else line)
    return "\n".join(made) + (("\n" + (pad if blank else "")) if ends else "")


def _not_implemented(*_arguments: Any, **_named: Any) -> Any:
    return _fail("not implemented")


def _member(item: Any, name: Any, default: Any) -> Any:
    """An element's attribute, which the engine does not count as looked at."""
    if isinstance(item, dict):
        return dict.get(item, name, default)
    if isinstance(item, list | tuple):
        index = int(name) if isinstance(name, str) and name.isdigit() else name
        if isinstance(index, int) and -len(item) <= index < len(item):
            return item[index]
    return default


def _attributes(keep: bool) -> Callable[..., list[Any]]:
    def chosen(values: Any, attribute: str, *rest: Any) -> list[Any]:
        made = []
        for item in values:
            value = item if len(rest) == 1 else _member(item, attribute, _Undefined())
            if not rest:
                wanted = bool(value)
            else:
                name = attribute if len(rest) == 1 else rest[0]
                wanted = _test(name)(value, rest[-1])
            if wanted is keep:
                made.append(item)
        return made

    return chosen


def _join(values: Any, d: Any = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = [_member(item, attribute, _Undefined()) for item in values]
    if any(_kind(value) not in ("str", "int", "float") for value in values):
        _fail("join() can only join arrays of strings or numerics")
    return _text(d).join(map(_text, values))


def _map(values: Any, *arguments: Any, attribute: Any = None, default: Any = None) -> list[Any]:
    if arguments or attribute is None:
        _fail("map: filter-mapping not implemented")
    missing = _Undefined() if default is None else default
    return [_member(item, attribute, missing) for item in values]


def _sort(
    values: Any, reverse: Any = False, case_sensitive: Any = False, attribute: Any = None
) -> list[Any]:
    del case_sensitive  # it always is

    def key(item: Any) -> Any:
        return item if attribute is None else _member(item, attribute, "")

    return sorted(values, key=key, reverse=bool(reverse))


def _dictsort(
    value: Any, case_sensitive: Any = False, by: Any = "key", reverse: Any = False
) -> dict[Any, Any]:
    del case_sensitive
    place = 1 if by == "value" else 0
    return dict(sorted(value.items(), key=lambda pair: pair[place], reverse=bool(reverse)))


def _append(values: list[Any], item: Any) -> list[Any]:
    values.append(item)
    return values


def _first(values: Any) -> Any:
    return values[0] if values else _Undefined()


def _last(values: Any) -> Any:
    return values[-1] if values else _Undefined()


_NUMBER: dict[str, Callable[..., Any]] = {
    "default": _default, "abs": abs, "int": int, "float": float, "safe": _llama_json,
    "string": _llama_json, "tojson": _llama_json,
}  # fmt: skip
_OF_NONE = ["items", "map", "reject", "rejectattr", "select", "selectattr", "unique"]
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(
        [
            "capitalize",
            "join",
            "lower",
            "replace",
            "safe",
            "string",
            "strip",
            "title",
            "truncate",
            "upper",
        ],
        "",
    ),
    **dict.fromkeys(("length", "sum", "wordcount"), 0),
}
_BUILTINS: dict[str, dict[str, Callable[..., Any]]] = {
    "undefined": {
        "default": _default,
        **{name: lambda *_a, _v=value, **_k: _v for name, value in _NOTHING.items()},
        **{name: lambda *_a, **_k: _Undefined() for name in ("first", "last", "max", "min")},
        **{name: lambda *_a, **_k: [] for name in [*_OF_NONE, "list", "reverse", "sort"]},
    },
    "none": {
        "default": _default, "tojson": _llama_json, "string": lambda _: "None",
        "safe": lambda _: "None", **{name: lambda *_a, **_k: [] for name in _OF_NONE},
    },
    "bool": {
        "default": _default, "int": int, "float": float, "safe": str, "string": str,
        "tojson": _llama_json,
    },
    "int": _NUMBER,
    "float": _NUMBER,
    "str": {
        "default": _default, "upper": _ascii(str.upper), "lower": _ascii(str.lower),
        "strip": lambda text, chars=_SPACES: text.strip(chars),
        "lstrip": lambda text, chars=_SPACES: text.lstrip(chars),
        "rstrip": lambda text, chars=_SPACES: text.rstrip(chars),
        "title": _title, "capitalize": _capitalize, "length": lambda text: len(_bytes(text)),
        "startswith": _starts, "endswith": _ends,
        "split": _split, "rsplit": _rsplit, "replace": _replace, "format": _format, "int": _int,
        "float": _float, "string": str, "safe": str, "tojson": _llama_json, "indent": _indent,
        "join": _not_implemented, "slice": _not_implemented,
    },
    "list": {
        "default": _default, "list": list, "first": _first, "last": _last, "length": len,
        "selectattr": _attributes(True), "select": _attributes(True),
        "rejectattr": _attributes(False), "reject": _attributes(False), "join": _join,
        "string": _text, "tojson": _llama_json, "map": _map, "append": _append,
        "pop": lambda values, index=-1: values.pop(index), "sort": _sort,
        "reverse": lambda values: list(values)[::-1],
        "min": lambda values, **_k: min(values) if values else _Undefined(),
        "max": lambda values, **_k: max(values) if values else _Undefined(),
        "unique": _not_implemented, "slice": _not_implemented,
    },
    "dict": {
        "get": lambda value, key, default=None: value.get(key, default),
        "keys": lambda value: list(value.keys()), "values": lambda value: list(value.values()),
        "items": lambda value: list(value.items()), "tojson": _llama_json, "string": _text,
        "length": len, "dictsort": _dictsort, "join": _not_implemented,
    },
    "function": {},
}  # fmt: skip
"""Filters and methods, which are the same to the engine, by the kind of their first argument."""

_ALIASES = {"count": "length", "d": "default", "e": "escape", "trim": "strip"}
_AS_TEXT = frozenset(["capitalize", "lower", "replace", "strip", "title", "upper", "wordcount"])


def _builtins(value: Any) -> dict[str, Callable[..., Any]]:
    return _BUILTINS["none" if value is None else _kind(value)]


def _filter(name: str) -> Callable[..., Any]:
    name = _ALIASES.get(name, name)

    def filtered(value: Any, *arguments: Any, **named: Any) -> Any:
        coerced = not arguments and not named and name in _AS_TEXT
        if coerced and not isinstance(value, str | Undefined):
            value = _text(value)
        if name == "selectattr" and isinstance(value, _Content | _Parts):
            value.ways.add("parts")
        if name not in _builtins(value):
            what = "None" if value is None else _kind(value)
            _fail(f"it has no filter {name!r} for a value of kind {what}")
        return _builtins(value)[name](value, *arguments, **named)

    return filtered


def _is_string(value: Any) -> bool:
    if isinstance(value, _Content | _Parts):
        value.ways.add("is string")
    return isinstance(value, str)


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, bool | int) and type(value) is type(other):
        return bool(value == other)
    return value is other and not isinstance(value, Undefined | str)


def _equal(left: Any, right: Any) -> bool:
    """``a == b``: lists and objects that hold such are never equal, not even to themselves."""
    kinds = (_kind(left), _kind(right))
    if "undefined" in kinds:
        return kinds[0] == kinds[1]
    if isinstance(left, list | tuple | Mapping):
        if type(left) is not type(right) and not isinstance(left, Mapping):
            return False
        inner = left.values() if isinstance(left, Mapping) else left
        return not any(isinstance(item, list | dict) for item in inner) and bool(left == right)
    return bool(left == right)


def _within(left: Any, right: Any) -> bool:
    if isinstance(right, Undefined):
        return False
    if isinstance(left, Undefined) or right is None:
        _fail("Cannot perform operation in on undefined or null values")
    if isinstance(right, list | tuple):
        return any(_equal(left, item) for item in right)
    if isinstance(right, str) and not isinstance(left, str):
        _fail("'in' expects a string")
    return left in right


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "lteq": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "gteq": lambda a, b: a >= b,
}


def _compare(left: Any, operator: str, right: Any) -> bool:
    if operator in ("eq", "ne"):
        return _equal(left, right) is (operator == "eq")
    if operator in ("in", "notin"):
        return _within(left, right) is (operator == "in")
    if not {_kind(left), _kind(right)} <= {"int", "float"}:
        _fail("it orders numbers only")
    return _ORDERS[operator](left, right)


_EACH = ("dict", "list", "str", "undefined")
_TESTS: dict[str, Callable[..., bool]] = {
    "boolean": lambda v: isinstance(v, bool),
    "callable": lambda v: _kind(v) == "function" and v is not None,
    "odd": lambda v: v % 2 != 0,
    "even": lambda v: v % 2 == 0,
    "false": lambda v: v is False,
    "true": lambda v: v is True,
    "divisibleby": lambda v, by: v % by == 0,
    "string": _is_string,
    "integer": lambda v: _kind(v) == "int",
    "float": lambda v: _kind(v) == "float",
    "number": lambda v: _kind(v) in ("int", "float"),
    "iterable": lambda v: _kind(v) in _EACH,
    "sequence": lambda v: _kind(v) in _EACH,
    "mapping": lambda v: _kind(v) == "dict",
    "lower": lambda v: not any(c.isascii() and c.isupper() for c in v),
    "upper": lambda v: not any(c.isascii() and c.islower() for c in v),
    "none": lambda v: v is None,
    "defined": lambda v: not isinstance(v, Undefined),
    "undefined": lambda v: isinstance(v, Undefined),
    **dict.fromkeys(("eq", "equalto"), lambda v, other: v == other),
    **dict.fromkeys(("gt", "greaterthan"), lambda v, other: v > other),
    **dict.fromkeys(("lt", "lessthan"), lambda v, other: v < other),
    "ge": lambda v, other: v >= other,
    "ne": lambda v, other: v != other,
    "in": lambda v, other: _within(v, other),
    "test": lambda v: v in _TESTS,
    "sameas": _same,
}


def _test(name: str) -> Callable[..., bool]:
    def tested(value: Any, *arguments: Any) -> bool:
        if name not in _TESTS:
            _fail(f"it has no test {name!r}")
        return _TESTS[name](value, *arguments)

    return tested


_LOOP = frozenset(
    ["index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"]
)


def _joined(left: Any, right: Any) -> str:
    """``a ~ b``: what is not there, or None, is no text beside a text."""
    absent = [value is None or isinstance(value, Undefined) for value in (left, right)]
    if any(absent) and not any(isinstance(value, str) for value in (left, right)):
        _fail("Cannot perform operation ~ on undefined or null values")
    if not any(isinstance(value, str) for value in (left, right)):
        _fail("Unknown operator '~'")
    return "".join("" if no else _text(v) for v, no in zip((left, right), absent, strict=True))


def _each(value: Any, pairs: bool) -> Any:
    """What a loop goes over."""
    if isinstance(value, _Content | _Parts):
        value.ways.add("parts")
    if isinstance(value, Undefined):
        return []
    if isinstance(value, Mapping):
        return list(value.items()) if pairs else list(value)
    if not isinstance(value, list | tuple):
        _fail("it loops over lists and objects only")
    return value


_SCOPES = ("_loop_vars", "_block_vars")  # what jinja2 hands to every call beside its arguments


class _Engine(ImmutableSandboxedEnvironment):
    """jinja2 with the engine's operators, members and calls."""

    required: Mapping[tuple[str, tuple[str, ...]], int]  # parameters without a default, by macro
    intercepted_binops = frozenset(["+", "-", "*", "/", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        del value
        return isinstance(obj, LoopContext | Namespace) and not attr.startswith("_")

    def is_safe_callable(self, obj: Any) -> bool:
        del obj
        return True  # only what is in the tables, and the template's own macros, can be reached

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        kinds = {_kind(left), _kind(right)}
        if kinds <= {"int", "float"}:
            if operator == "/":
                return left / right
            if operator == "%":
                rest = abs(left) % abs(right)
                return -rest if left < 0 else rest
            return super().call_binop(context, operator, left, right)
        if operator == "+" and kinds == {"list"}:
            return [*left, *right]
        if operator == "+" and "str" in kinds:
            return _joined(left, right)
        if operator == "*" and kinds == {"str", "int"}:
            return left * right
        return _fail(f"it has no operator {operator!r} for these values")

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext):
            return getattr(obj, attribute) if attribute in _LOOP else _Undefined(name=attribute)
        if isinstance(obj, Namespace):
            return super().getattr(obj, attribute)
        builtin = _builtins(obj).get(attribute)
        if builtin is not None and not isinstance(obj, Undefined):
            return lambda *arguments, **named: builtin(obj, *arguments, **named)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Namespace):
            return super().getitem(obj, argument)
        if isinstance(obj, Mapping):
            if isinstance(argument, str | int) and argument in obj:
                return obj[argument]
        elif isinstance(obj, list | tuple | str) and isinstance(argument, slice):
            raw = _bytes(obj)[argument] if isinstance(obj, str) else obj[argument]
            return _from_bytes(raw) if isinstance(raw, bytes) else raw
        elif isinstance(obj, list | tuple | str) and isinstance(argument, int):
            if isinstance(obj, _Content | _Parts):
                obj.ways.add("parts")
            if isinstance(obj, str):
                raw = _bytes(obj)[argument : argument + 1] if argument >= 0 else b""
                return _from_bytes(raw) if raw else _Undefined(name=str(argument))
            inside = -len(obj) <= argument < len(obj)
            return obj[argument] if inside else _Undefined(name=str(argument))
        builtin = _builtins(obj).get(argument) if isinstance(argument, str) else None
        if builtin is not None and not isinstance(obj, Undefined):
            return lambda *arguments, **named: builtin(obj, *arguments, **named)
        return _Undefined(name=str(argument))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if isinstance(__obj, Macro):
            # A macro's parameters are bound one by one while there are arguments, named or not.
            scopes = {key: kwargs.pop(key) for key in _SCOPES if key in kwargs}
            given = len(args) + len(kwargs)
            if given < __self.required.get((__obj.name, tuple(__obj.arguments)), 0):
                _fail(f"not enough arguments for {__obj.name}")
            named: dict[str, Any] = {}
            for place, name in enumerate(__obj.arguments[:given]):
                by_place = args[place] if place < len(args) else _Undefined(name=name)
                named[name] = kwargs.get(name, by_place)
            caller = {"caller": kwargs["caller"]} if "caller" in kwargs else {}
            return super().call(__context, __obj, **named, **caller, **scopes)
        return super().call(__context, __obj, *args, **kwargs)


class _Rewrite:
    """A template's tree with the engine's ways where jinja2 has no place for them.

    Concatenation and what loops go over become filters. A variable that is set in a loop keeps
    its value for the next turn, in jinja2 it does not: it becomes a member of a namespace.
    """

    def __init__(self) -> None:
        self._spaces = 0

    def body(self, found: Iterable[Any], names: Mapping[str, str]) -> list[Any]:
        return [made for node in found for made in self._node(node, names)]

    def _node(self, node: Any, names: Mapping[str, str]) -> Iterator[Any]:
        if isinstance(node, nodes.For):
            yield from self._loop(node, names)
            return
        if isinstance(node, nodes.Macro):
            names = {}
        if isinstance(node, nodes.Name):
            if node.name not in names or node.ctx == "param":
                yield node
            elif node.ctx == "store":
                yield nodes.NSRef(names[node.name], node.name, lineno=node.lineno)
            else:
                space = nodes.Name(names[node.name], "load", lineno=node.lineno)
                yield nodes.Getattr(space, node.name, "load", lineno=node.lineno)
            return
        for field, value in list(node.iter_fields()):
            if isinstance(value, list):
                made: list[Any] = []
                for item in value:
                    made += self._node(item, names) if isinstance(item, nodes.Node) else [item]
                setattr(node, field, made)
            elif isinstance(value, nodes.Node):
                (inner,) = self._node(value, names)
                setattr(node, field, inner)
        if isinstance(node, nodes.Concat):
            yield self._concat(node)
        elif isinstance(node, nodes.Compare):
            yield self._compare(node)
        else:
            yield node

    def _compare(self, node: Any) -> Any:
        made = node.expr
        for other in node.ops:
            arguments = [nodes.Const(other.op, lineno=node.lineno), other.expr]
            made = nodes.Filter(made, "__compare", arguments, [], None, None, lineno=node.lineno)
        return made

    def _concat(self, node: Any) -> Any:
        made = node.nodes[0]
        for other in node.nodes[1:]:
            made = nodes.Filter(made, "__concat", [other], [], None, None, lineno=node.lineno)
        return made

    def _loop(self, node: Any, names: Mapping[str, str]) -> Iterator[Any]:
        (iterable,) = self._node(node.iter, names)
        pairs = nodes.Const(isinstance(node.target, nodes.Tuple), lineno=node.lineno)
        node.iter = nodes.Filter(iterable, "__each", [pairs], [], None, None, lineno=node.lineno)
        targets = {name.name for name in node.target.find_all(nodes.Name)}
        targets |= {node.target.name} if isinstance(node.target, nodes.Name) else set()
        inner = {name: space for name, space in names.items() if name not in targets}
        stored = sorted(set(_stored(node.body)) - targets - {"loop"})
        if stored:
            self._spaces += 1
            space = f"__loop{self._spaces}"
            values = []
            for name in stored:
                (value,) = self._node(nodes.Name(name, "load", lineno=node.lineno), names)
                values.append(nodes.Keyword(name, value, lineno=node.lineno))
            maker = nodes.Name("__namespace", "load", lineno=node.lineno)
            call = nodes.Call(maker, [], values, None, None, lineno=node.lineno)
            target = nodes.Name(space, "store", lineno=node.lineno)
            yield nodes.Assign(target, call, lineno=node.lineno)
            inner |= dict.fromkeys(stored, space)
        if node.test is not None:
            (node.test,) = self._node(node.test, names)
        node.body = self.body(node.body, inner)
        node.else_ = self.body(node.else_, names)
        yield node


def _stored(found: Iterable[Any]) -> Iterator[str]:
    """Names that statements set in their own scope."""
    for node in found:
        if isinstance(node, nodes.Assign | nodes.AssignBlock):
            if isinstance(node.target, nodes.Name):
                yield node.target.name
            else:
                yield from (n.name for n in node.target.find_all(nodes.Name))
        if isinstance(node, nodes.If):
            yield from _stored((*node.body, *node.elif_, *node.else_))
        elif isinstance(node, nodes.Scope):
            yield from _stored(node.body)


def _compile(template: str) -> Any:
    check_syntax(template)
    environment = _environment(_Engine, undefined=_Undefined, finalize=_printed)
    for name in ("cycler", "joiner", "lipsum"):
        environment.globals.pop(name)
    environment.globals["range"] = lambda *arguments: list(range(*arguments))
    environment.globals["dict"] = lambda *arguments, **named: dict(*arguments, **named)
    environment.globals["namespace"] = environment.globals["__namespace"] = Namespace
    tree = environment.parse(template)
    environment.filters = {node.name: _filter(node.name) for node in tree.find_all(nodes.Filter)}
    environment.filters |= {"__concat": _joined, "__each": _each, "__compare": _compare}
    environment.tests = {node.name: _test(node.name) for node in tree.find_all(nodes.Test)}
    environment.required = {
        (macro.name, tuple(arg.name for arg in macro.args)): len(macro.args) - len(macro.defaults)
        for macro in tree.find_all(nodes.Macro)
    }
    tree.body = _Rewrite().body(tree.body, {})
    return environment.from_string(tree)


# --- the process -------------------------------------------------------------------------------

_WAYS: dict[str, Callable[..., str]] = {"original": original, "llama": llama}


def answer(jobs: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The ``text`` of each job, or why there is none.

    A job has a ``way``, a ``template``, ``tokens`` and a ``chat``. A ``refusal`` is the template's
    own word (``raise_exception``) or a fault that shows when it runs; a template is ``unreadable``
    where it means nothing, to jinja2 or to the engine.
    """
    answers = []
    for job in jobs:
        try:
            text = _WAYS[job["way"]](job["template"], job["tokens"], job["chat"])
            answers.append({"text": text})
        except UnreadableError as error:
            answers.append({"unreadable": str(error)})
        except Exception as error:  # noqa: BLE001 - a template may fail in any way
            kind = "unreadable" if _has_no_meaning(job["template"]) else "refusal"
            answers.append({kind: str(error)})
    return answers


def _has_no_meaning(template: str) -> bool:
    try:
        _environment(ImmutableSandboxedEnvironment).parse(template)
    except TemplateError:
        return True
    return False


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
