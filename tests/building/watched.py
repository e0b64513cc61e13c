"""``python -m tests.building.watched REPORT ARGUMENT...``: quantkit, its reads and writes noted.

REPORT becomes a JSON object: ``reads`` has (file, offset, bytes) for every read of weights while
building, ``opened`` every file that this process opened for reading, ``changed`` every path that
it made, opened for writing, renamed or deleted. The last two come from Python's audit events, so
they hold for the standard library and extension modules that go through it as well.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHANGES = {
    f"os.{name}" for name in ["mkdir", "rename", "remove", "rmdir", "truncate", "link", "symlink"]
}


def _watch() -> dict[str, list[Any]]:
    noted: dict[str, list[Any]] = {"reads": [], "opened": [], "changed": []}

    def hook(event: str, args: Sequence[Any]) -> None:
        if event == "open" and not isinstance(args[0], int):
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            noted["changed" if writes else "opened"].append(_absolute(path))
        elif event in _CHANGES:
            paths = [path for path in args[:2] if isinstance(path, str | bytes | os.PathLike)]
            noted["changed"].extend(map(_absolute, paths))

    sys.addaudithook(hook)
    return noted


def _absolute(path: str | bytes | os.PathLike[str]) -> str:
    return str(Path(os.fsdecode(path)).absolute())


def _run(report: Path, arguments: list[str]) -> None:
    from quantkit.building import source
    from quantkit.cli.main import main

    noted = _watch()
    real = source.read_exactly

    def read(fd: int, n_bytes: int, offset: int, path: Path) -> Any:
        noted["reads"].append([str(path), offset, n_bytes])
        return real(fd, n_bytes, offset, path)

    source.read_exactly = read
    sys.argv = ["quantkit", *arguments]
    try:
        main()
    finally:
        text = json.dumps(noted)
        report.write_text(text)


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2:])
