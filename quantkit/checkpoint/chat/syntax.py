"""What the lexer and parser of llama.cpp's engine refuse though jinja2 takes it."""

import re

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantkit.checkpoint.chat.jinja import make_environment


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
    environment = make_environment(ImmutableSandboxedEnvironment)
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
