"""Text in Markdown: whatever it holds, it stays text."""

import re

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$])")


def escaped(text: object) -> str:
    """Text inside a line of Markdown, whatever it holds."""
    line = " ".join(str(text).split())
    return _MARKDOWN.sub(r"\\\1", line)


def code(text: object) -> str:
    """Text as code inside a line, in a table too."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def fenced(text: object, language: str = "") -> str:
    """Text as a block of code that nothing in it can end."""
    block = str(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block)), default=0))
    return f"{fence}{language}\n{block}\n{fence}"
