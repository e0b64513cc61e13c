"""One process of llama.cpp's converter for many checkpoints: it takes seconds to start."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from quantkit.checkpoint.converter import describe
from quantkit.checkpoint.converter.process import ConverterProcess
from quantkit.checkpoint.converter.provision import Converter


@contextmanager
def one_converter() -> Iterator[None]:
    """Let checkpoints be described by one process, that lasts as long as this does.

    What dies or is given up by it is started anew.
    """
    running: list[ConverterProcess] = []

    class Shared:
        def __init__(self, converter: Converter, folder: Path) -> None:
            del folder  # those who are told the answers remove it
            if not running:
                running.append(ConverterProcess(converter))

        def ask(self, *arguments: Any) -> Any:
            try:
                return running[0].ask(*arguments)
            except BaseException:
                running.pop().close()
                raise

        def close(self) -> None:
            pass

    with patch.object(describe, "ConverterProcess", Shared):
        try:
            yield
        finally:
            for process in running:
                process.close()
