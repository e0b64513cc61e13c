"""Running llama.cpp's converter in a process of its own, which we feed and ask."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import StoredReader
from quantkit.checkpoint.converter.channel import Channel
from quantkit.checkpoint.converter.provision import Converter
from quantkit.core.child import child_environment
from quantkit.core.errors import ConverterEndedError, ConverterError, TokenizerError
from quantkit.core.printable import one_line

# Of data, PyTorch's and the largest vocabularies' included; what it describes is in none of it.
MEMORY = 6 * 2**30
# Without a word from it. Describing 23,000 tensors takes seconds, a matrix of any model less than a
# minute; a machine that is ten times slower, or busy, is waited for all the same.
PATIENCE = 15 * 60.0


class ConverterProcess:
    """A running converter. One question at a time; it ends when it is closed, or we do."""

    def __init__(self, converter: Converter, folder: Path | None = None) -> None:
        """Start it; when we end, however that is, it removes ``folder``, a temporary one."""
        receive, theirs = os.pipe()
        ours, send = os.pipe()
        said = {
            "tree": str(converter.tree),
            "packages": str(converter.packages),
            "memory": MEMORY,
            "folder": folder and str(folder),
        }
        module = "quantkit.checkpoint.converter.child"
        command = [
            sys.executable,
            "-P",
            "-B",
            "-m",
            module,
            str(ours),
            str(theirs),
            json.dumps(said),
        ]
        environment = {
            **child_environment(),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            # Importing torch makes this folder, where it would keep what it compiles. It is there.
            "TORCHINDUCTOR_CACHE_DIR": str(converter.packages),
        }
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(ours, theirs),
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        finally:
            os.close(theirs)
            os.close(ours)
        self._channel = Channel(receive, send, PATIENCE)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def ask(
        self,
        request: Mapping[str, Any],
        read: StoredReader,
        name_pre_tokenizer: Callable[[], str] | None = None,
    ) -> tuple[dict[str, Any], bytearray]:
        """Its answer, in between which it may want rows of the source.

        Args:
            request: ``describe``, ``needs`` or ``rows``, with what belongs to it.
            read: gives rows of the source.
            name_pre_tokenizer: names how the tokenizer splits text, where the converter can't.

        Raises:
            ConverterEndedError: it was killed, or died.
            ConverterError: it said nothing for `PATIENCE`.

        """
        try:
            self._channel.send(dict(request))
            while True:
                message, data = self._channel.receive()
                if "read" in message:
                    rows = read(message["read"], message["first"], message["count"])
                    self._channel.send({}, rows)
                elif "pre" in message and name_pre_tokenizer is not None:
                    self._channel.send(_named(name_pre_tokenizer))
                else:
                    return message, data
        except TimeoutError:
            self.close()
            raise ConverterError(
                f"llama.cpp's converter said nothing for {PATIENCE / 60:g} minutes and was ended; "
                "check that config.json is that of the model, or give a GGUF of it."
            ) from None
        except (EOFError, OSError):
            raise ConverterEndedError(
                f"llama.cpp's converter ended without an answer ({self._end()}); run the same "
                "command again, which goes on where it was."
            ) from None
        except BaseException:
            self.close()  # it waits for what does not come
            raise

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _end(self) -> str:
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "it hung up"
        return signal.Signals(-status).name if status < 0 else f"status {status}"


def _named(name_pre_tokenizer: Callable[[], str]) -> dict[str, str]:
    try:
        return {"pre": name_pre_tokenizer()}
    except TokenizerError as error:
        return {"refused": f"tokenizer:{error}"}


def said(answer: Mapping[str, Any]) -> str:
    """What a failed answer says, in one line."""
    return one_line(str(answer.get("failed", "")), 200).rstrip(".")
