"""Which models a converter has no class for, told without starting it: that takes seconds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.core.errors import ConverterError
from quantkit.core.files import read_file

_TABLE, _IN = "TEXT_MODEL_MAP", "conversion/__init__.py"


def unknown_architecture(tree: Path, config: Mapping[str, Any]) -> str | None:
    """The architecture of a text model that the converter in a tree does not name in its table.

    Args:
        tree: a folder of llama.cpp.
        config: a config.json.

    Returns:
        None where it is named, and where only the converter itself can tell: which part's
        architecture counts, where a config has several, is for ``get_model_architecture`` in its
        ``base.py``.

    Raises:
        ConverterError: the table cannot be read.

    """
    named = list(_named(config))
    if len(named) != 1 or "architectures" not in config:
        return None
    [name] = named
    table = read_file(tree / _IN, error=ConverterError).decode(errors="replace")
    return None if _TABLE not in table or f'"{name}"' in table else name


def _named(config: Any) -> Iterator[str]:
    """What a config and its parts name as their architectures, the first of each."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if key == "architectures":
            if isinstance(value, list) and value and isinstance(value[0], str):
                yield value[0]
        elif isinstance(value, Mapping):
            yield from _named(value)
