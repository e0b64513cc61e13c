"""What ``--help`` prints: options in panels, defaults, and examples to copy.

typer's own page has six columns and cuts names that do not fit its widths. This one has two, and
gives a name that is too long for the first a line of its own, so that 60 columns suffice.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from quantkit.cli.examples import EXAMPLES
from quantkit.cli.panels import COMMON, ORDER

# Options that had another name: it still works, and help speaks of the new one alone.
FORMER = frozenset({"--threads", "--plots"})

_WIDEST = 100  # columns: longer lines are hard to read
_FRAME = 4  # columns that a panel takes for itself
_GAP = 2  # columns between a name and what it does

_Row = tuple[Text, Text]


# What click hands over is `Any`: versions of typer have its classes at different places.
class HelpfulCommand(TyperCommand):
    """A command whose help has panels and examples."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line."""
        return ["[OPTIONS]", *(_place(one) for one in self.get_params(ctx) if _is_argument(one))]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        params = _shown(self.get_params(ctx))
        panels = {"Arguments": [_row(one) for one in params if _is_argument(one)]}
        panels |= _sorted_options([one for one in params if not _is_argument(one)])
        formatter.write(_page(self, ctx, [panels], ctx.info_name))


class HelpfulGroup(TyperGroup):
    """The commands, what each does, and the options of all."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        panels: dict[str, list[_Row]] = {}
        for name, command in self.commands.items():
            about = _styled(_paragraphs(command.help)[0])
            title = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(title, []).append((Text(name, style="bold cyan"), about))
        options = {"Options": list(map(_row, _shown(self.get_params(ctx))))}
        formatter.write(_page(self, ctx, [panels, options], ""))


def _shown(params: Iterable[Any]) -> list[Any]:
    return [one for one in params if not one.hidden]


def _sorted_options(params: Sequence[Any]) -> dict[str, list[_Row]]:
    """Options by their panels, in order; a single panel needs no name of its own."""
    panels = {title: [one for one in params if _panel_of(one) == title] for title in ORDER}
    if not any(panels[title] for title in ORDER if title != COMMON):
        return {"Options": list(map(_row, params))}
    return {title: list(map(_row, some)) for title, some in panels.items()}


def _panel_of(option: Any) -> str:
    return option.rich_help_panel or COMMON


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _place(argument: Any) -> str:
    """An argument in the usage line."""
    name = _name(argument)
    return name if argument.required else f"[{name}]"


def _name(argument: Any) -> str:
    return f"{argument.metavar or argument.name.upper()}{'...' if argument.nargs == -1 else ''}"


def _row(param: Any) -> _Row:
    """What is typed, and what it does."""
    if _is_argument(param):
        label = Text(_name(param), style="bold cyan")
    else:
        names = [name for name in param.opts if name not in FORMER]
        label = Text(", ".join(sorted(names, key=len)), style="bold cyan")
        if param.secondary_opts:
            label.append(f" / {', '.join(param.secondary_opts)}")
        if param.metavar and not param.is_flag:
            label.append(f" {param.metavar}", style="not bold yellow")
    about = param.help or ""
    if default := _default(param):
        about += f"  [default: {default}]"
    elif param.required and not _is_argument(param):
        about += "  [required]"
    return label, _styled(about)


def _default(param: Any) -> str:
    """The default as it would be typed; what has none in its signature says it in its text."""
    value = param.default
    if isinstance(value, bool):
        pair = param.opts if value else param.secondary_opts
        return pair[0] if param.secondary_opts else ""
    return "" if value is None or callable(value) or value in ((), []) else str(value)


def _styled(words: str) -> Text:
    """Words with `code` in them, and a default at their end."""
    text = Text()
    for number, part in enumerate(words.split("`")):
        text.append(part, style="bold" if number % 2 else "")
    text.highlight_regex(r"\[(default: [^]]*|required)\]", "dim")
    text.highlight_regex(r"(?<![\w-])--?[a-zA-Z][\w-]*", "cyan")
    return text


def _paragraphs(text: str | None) -> list[str]:
    """The paragraphs of a docstring, each in one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n")]


def _page(command: Any, ctx: Any, parts: Sequence[Mapping[str, list[_Row]]], name: str) -> str:
    """The page; the panels of a part are aligned with each other."""
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST)
    with console.capture() as page:
        usage = [ctx.command_path, *command.collect_usage_pieces(ctx)]
        console.print(Text.assemble(("Usage: ", "bold"), " ".join(usage)))
        for paragraph in _paragraphs(command.help):
            console.print()
            console.print(_styled(paragraph))
        console.print()
        for panels in parts:
            room = _room(panels.values(), console.width - _FRAME)
            for title, rows in panels.items():
                if rows:
                    entries = Group(*(_entry(row, room) for row in rows))
                    console.print(
                        Panel(entries, title=title, title_align="left", border_style="dim")
                    )
        console.print()
        console.print("Examples:", style="bold")
        for purpose, typed in EXAMPLES[name]:
            console.print(Text(f"  # {purpose}", style="dim"))
            console.print(Text(f"  {typed}"), soft_wrap=True)  # to be copied
    return "\n".join(line.rstrip() for line in page.get().splitlines())


def _room(panels: Iterable[Sequence[_Row]], width: int) -> int:
    """Columns for names: as many as the longest of those that leave most of the width."""
    most = width * 2 // 5
    longest = (label.cell_len for rows in panels for label, _ in rows)
    return max((length for length in longest if length <= most), default=most)


def _entry(row: _Row, room: int) -> RenderableType:
    label, about = row
    if label.cell_len > room:
        return Group(label, Padding(about, (0, 0, 0, room + _GAP)))
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(width=room)
    grid.add_column()
    grid.add_row(label, about)
    return grid
