"""jinja2 with the engine's operators, members, calls, filters and tests."""

from collections.abc import Mapping
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from quantkit.checkpoint.chat.checks import find_test
from quantkit.checkpoint.chat.filters import builtins_of, find_filter
from quantkit.checkpoint.chat.jinja import make_environment
from quantkit.checkpoint.chat.operators import compare, each, joined
from quantkit.checkpoint.chat.rewrite import Rewrite
from quantkit.checkpoint.chat.syntax import check_syntax
from quantkit.checkpoint.chat.values import Missing, fail, from_bytes, kind_of, printed, to_bytes
from quantkit.checkpoint.chat.watched import Content, Parts

_LOOP = frozenset(
    ["index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"]
)


_SCOPES = ("_loop_vars", "_block_vars")  # what jinja2 hands to every call beside its arguments


class Engine(ImmutableSandboxedEnvironment):
    """jinja2 with the engine's operators, members and calls."""

    required: Mapping[tuple[str, tuple[str, ...]], int]  # parameters without a default, by macro
    intercepted_binops = frozenset(["+", "-", "*", "/", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: D102 - jinja2's
        del value
        return isinstance(obj, LoopContext | Namespace) and not attr.startswith("_")

    def is_safe_callable(self, obj: Any) -> bool:  # noqa: D102 - jinja2's
        del obj
        return True  # only what is in the tables, and the template's own macros, can be reached

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: D102 - jinja2's
        kinds = {kind_of(left), kind_of(right)}
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
            return joined(left, right)
        if operator == "*" and kinds == {"str", "int"}:
            return left * right
        return fail(f"it has no operator {operator!r} for these values")

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: D102 - jinja2's
        if isinstance(obj, LoopContext):
            return getattr(obj, attribute) if attribute in _LOOP else Missing(name=attribute)
        if isinstance(obj, Namespace):
            return super().getattr(obj, attribute)
        builtin = builtins_of(obj).get(attribute)
        if builtin is not None and not isinstance(obj, Undefined):
            return lambda *arguments, **named: builtin(obj, *arguments, **named)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: D102 - jinja2's
        if isinstance(obj, Namespace):
            return super().getitem(obj, argument)
        if isinstance(obj, Mapping):
            if isinstance(argument, str | int) and argument in obj:
                return obj[argument]
        elif isinstance(obj, list | tuple | str) and isinstance(argument, slice):
            raw = to_bytes(obj)[argument] if isinstance(obj, str) else obj[argument]
            return from_bytes(raw) if isinstance(raw, bytes) else raw
        elif isinstance(obj, list | tuple | str) and isinstance(argument, int):
            if isinstance(obj, Content | Parts):
                obj.ways.add("parts")
            if isinstance(obj, str):
                raw = to_bytes(obj)[argument : argument + 1] if argument >= 0 else b""
                return from_bytes(raw) if raw else Missing(name=str(argument))
            inside = -len(obj) <= argument < len(obj)
            return obj[argument] if inside else Missing(name=str(argument))
        builtin = builtins_of(obj).get(argument) if isinstance(argument, str) else None
        if builtin is not None and not isinstance(obj, Undefined):
            return lambda *arguments, **named: builtin(obj, *arguments, **named)
        return Missing(name=str(argument))

    # As in jinja2's own class: a template may pass arguments called self or context.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, D102
        if isinstance(__obj, Macro):
            # A macro's parameters are bound one by one while there are arguments, named or not.
            scopes = {key: kwargs.pop(key) for key in _SCOPES if key in kwargs}
            given = len(args) + len(kwargs)
            if given < __self.required.get((__obj.name, tuple(__obj.arguments)), 0):
                fail(f"not enough arguments for {__obj.name}")
            named: dict[str, Any] = {}
            for place, name in enumerate(__obj.arguments[:given]):
                by_place = args[place] if place < len(args) else Missing(name=name)
                named[name] = kwargs.get(name, by_place)
            caller = {"caller": kwargs["caller"]} if "caller" in kwargs else {}
            return super().call(__context, __obj, **named, **caller, **scopes)
        return super().call(__context, __obj, *args, **kwargs)


def compile_template(template: str) -> Any:
    """A template as the engine reads it.

    Raises:
        UnreadableError: the engine cannot.

    """
    check_syntax(template)
    environment = make_environment(Engine, undefined=Missing, finalize=printed)
    for name in ("cycler", "joiner", "lipsum"):
        environment.globals.pop(name)
    environment.globals["range"] = lambda *arguments: list(range(*arguments))
    environment.globals["dict"] = lambda *arguments, **named: dict(*arguments, **named)
    environment.globals["namespace"] = environment.globals["__namespace"] = Namespace
    tree = environment.parse(template)
    environment.filters = {
        node.name: find_filter(node.name) for node in tree.find_all(nodes.Filter)
    }
    environment.filters |= {"__concat": joined, "__each": each, "__compare": compare}
    environment.tests = {node.name: find_test(node.name) for node in tree.find_all(nodes.Test)}
    environment.required = {
        (macro.name, tuple(arg.name for arg in macro.args)): len(macro.args) - len(macro.defaults)
        for macro in tree.find_all(nodes.Macro)
    }
    tree.body = Rewrite().body(tree.body, {})
    return environment.from_string(tree)
