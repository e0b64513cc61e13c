"""Values that know what a template did with them, as llama.cpp's engine keeps count."""

from typing import Any


class Watched(dict[str, Any]):
    """A dict that knows which of its keys were looked at."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: D102 - dict's
        self.seen.add(key)
        return super().get(key, default)

    def items(self) -> Any:  # noqa: D102 - dict's
        self.seen.update(self)
        return super().items()


class Content(str):
    """A message's text that knows whether it was taken for a list, or asked whether it is text."""

    ways: set[str]


class Parts(list[Any]):
    """The same, of a message's parts."""

    ways: set[str]
