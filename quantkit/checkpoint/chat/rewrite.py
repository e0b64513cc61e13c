"""A template's tree with the engine's ways where jinja2 has no place for them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import nodes


class Rewrite:
    """A template's tree with the engine's ways where jinja2 has no place for them.

    Concatenation and what loops go over become filters. A variable that is set in a loop keeps
    its value for the next turn, in jinja2 it does not: it becomes a member of a namespace.
    """

    def __init__(self) -> None:
        self._spaces = 0

    def body(self, found: Iterable[Any], names: Mapping[str, str]) -> list[Any]:
        """Rewritten statements, with the namespace of each name that is set in a loop."""
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
