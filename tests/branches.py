"""Which ways the conditions of some modules went while a test ran.

Finer than lines: each ``and``, ``or``, ``case`` and conditional expression is a jump in the
bytecode, and each jump is to be seen taken and not taken.
"""

import dis
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any


class Branches:
    """A context that watches modules; afterwards `missed` says what never happened in them."""

    def __init__(self, *modules: ModuleType) -> None:
        self._jumps: dict[CodeType, dict[int, tuple[int, int]]] = {}
        for module in modules:
            for code in _codes_of(module):
                self._jumps[code] = _jumps_of(code)
        self._gone: set[tuple[CodeType, int, int]] = set()
        self._entered: set[CodeType] = set()
        self._before: Any = None

    def __enter__(self) -> "Branches":
        self._before = sys.gettrace()
        sys.settrace(self._on_call)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.settrace(self._before)

    @property
    def missed(self) -> list[str]:
        """A line for each function that was not called and each jump that went one way only."""
        found = []
        for code, jumps in self._jumps.items():
            file = Path(code.co_filename).name
            if code not in self._entered:
                found.append(f"{file}:{code.co_firstlineno}: {code.co_qualname} was not called")
                continue
            lines = _lines_of(code)
            for offset, ways in jumps.items():
                seen = sum((code, offset, way) in self._gone for way in ways)
                if seen < len(ways):
                    went = "went one way only" if seen else "was not reached"
                    found.append(f"{file}:{lines[offset]}: a condition {went}")
        return found

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        code = frame.f_code
        jumps = self._jumps.get(code)
        if jumps is None:
            return None
        self._entered.add(code)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        gone, last = self._gone, -1

        def on_opcode(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            del argument
            if event == "opcode":
                if last >= 0:
                    gone.add((code, last, frame.f_lasti))
                last = frame.f_lasti if frame.f_lasti in jumps else -1
            return on_opcode

        return on_opcode


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    """The code of each function, method and generator that a module's file defines."""
    file = module.__file__
    pending: list[Any] = list(vars(module).values())
    while pending:
        one = pending.pop()
        if isinstance(one, type) and one.__module__ == module.__name__:
            pending += vars(one).values()
        elif isinstance(one, property):
            pending.append(one.fget)
        elif hasattr(one, "cache_clear"):  # what is kept would not be run
            one.cache_clear()
            pending.append(one.__wrapped__)
        code = getattr(one, "__code__", one)
        if isinstance(code, CodeType) and code.co_filename == file:
            yield code
            pending += [part for part in code.co_consts if isinstance(part, CodeType)]


def _jumps_of(code: CodeType) -> dict[int, tuple[int, int]]:
    """The conditional jumps by their offsets: where they lead, and what comes next."""
    instructions = list(dis.get_instructions(code))
    return {
        one.offset: (one.argval, after.offset)
        for one, after in pairwise(instructions)
        if "JUMP" in one.opname and "_IF_" in one.opname
    }


def _lines_of(code: CodeType) -> dict[int, int]:
    lines: dict[int, int] = {}
    for start, end, line in code.co_lines():
        lines |= dict.fromkeys(range(start, end), line or code.co_firstlineno)
    return lines
