"""One process of llama.cpp's converter for many checkpoints: it takes seconds to start."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from quantkit.checkpoint.converter import rows
from quantkit.checkpoint.converter.process import ConverterProcess
from quantkit.checkpoint.converter.provision import Converter
from quantkit.checkpoint.converter.rows import ConvertedRows


@contextmanager
def one_converter() -> Iterator[None]:
    """Let checkpoints be described by one process of a converter, that lasts as long as this does.

    It knows the checkpoint that it described last. Whoever asks for rows of another has it
    described again, as after a kill. What dies or is given up by it is started anew.
    """
    running: dict[Converter, ConverterProcess] = {}
    last: dict[Converter, object] = {}  # who had something described

    class Shared:
        def __init__(self, converter: Converter, folder: Path) -> None:
            del folder  # those who are told the answers remove it
            self._converter = converter
            if converter not in running:
                running[converter] = ConverterProcess(converter)

        @property
        def pid(self) -> int:
            return running[self._converter].pid

        @property
        def is_last(self) -> bool:
            return self._converter in running and last.get(self._converter) is self

        def ask(self, request: Mapping[str, Any], *arguments: Any) -> Any:
            if request["ask"] == "describe":
                last[self._converter] = self
            try:
                return running[self._converter].ask(request, *arguments)
            except BaseException:
                running.pop(self._converter).close()
                raise

        def close(self) -> None:
            pass

    begun = ConvertedRows._begun

    def described(rows: ConvertedRows) -> ConverterProcess:
        process: Any = rows._process
        if isinstance(process, Shared) and not process.is_last:
            rows._process = None
        return begun(rows)

    with (
        patch.object(rows, "ConverterProcess", Shared),
        patch.object(ConvertedRows, "_begun", described),
    ):
        try:
            yield
        finally:
            for process in running.values():
                process.close()
