"""Rows of a checkpoint as llama.cpp's converter computes them, from its process."""

import atexit
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint, Range, StoredReader
from quantkit.checkpoint.converter.known import unknown_architecture
from quantkit.checkpoint.converter.plausible import require_plausible
from quantkit.checkpoint.converter.process import ConverterProcess, said
from quantkit.checkpoint.converter.provision import Converter, find_converter
from quantkit.checkpoint.converter.scales import require_groups, require_scales
from quantkit.checkpoint.converter.small_files import (
    link_small_files,
    remove,
    require_sound,
    rewrite_config,
)
from quantkit.checkpoint.converter.wish import ConverterOptions, silent
from quantkit.checkpoint.names import is_for_converters
from quantkit.checkpoint.rows import read_stored
from quantkit.core.errors import (
    CheckpointError,
    ConverterError,
    TokenizerError,
    UnknownArchitectureError,
)
from quantkit.core.tensors import SourceTensor

_MOST_ASKED = 4096  # units in a question: a large model has hundreds of thousands


class ConvertedRows:
    """Rows of a converted checkpoint, those that are computed from the converter's process.

    It goes to other processes as what it was made of, and starts a converter of its own there.
    """

    def __init__(self, checkpoint: Checkpoint, wish: ConverterOptions) -> None:
        self.stored = checkpoint
        self.wish = wish
        self._process: ConverterProcess | None = None
        self._converter: Converter | None = None
        self._version: str | None = None  # that described it, here or elsewhere
        self.numbers: dict[str, int] = {}
        self._folder: Path | None = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        wish = replace(self.wish, say=silent)
        return {"stored": self.stored, "wish": wish, "version": self._version,
                "numbers": self.numbers}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["stored"], state["wish"])  # type: ignore[misc]
        self._version, self.numbers = state["version"], state["numbers"]

    def tokenizer(self, *, whole: bool = True) -> dict[str, Any]:
        """The checkpoint's tokenizer as the converter's transformers opens it.

        See `library.tell`; what cannot be opened has no ``class`` but ``why``.
        """
        request = {"ask": "tokenizer", "whole": whole}
        with self._lock:
            process = self._process
            if self._converter is None:
                self._converter = find_converter(self.wish.tree)
            folder = self._folder or self._link_small_files()
            if process is None:
                process = ConverterProcess(self._converter, folder.parent)
            try:
                answer, _ = process.ask({**request, "folder": str(folder)}, self.read)
            finally:
                if process is not self._process:
                    process.close()
                if self._folder is None:
                    remove(folder)
        if "class" in answer:
            return answer
        refused = str(answer.get("refused", ""))
        kind, _, code = refused.partition(":")
        wants = f"only {code}, code that came with the model, reads it" if kind == "code" else ""
        return {"why": said(answer) or wants or refused}

    def __call__(self, name: str, first: int, count: int) -> NDArray[np.uint8]:
        """Rows of a tensor, of the source's or of one that is computed."""
        return self.rows(name, first, count, self.read)

    def rows(self, name: str, first: int, count: int, read: StoredReader) -> NDArray[np.uint8]:
        """Rows of a tensor, for which ``read`` gives rows of stored ones along their first axis."""
        if name not in self.numbers:
            return self._read_direct(name, first, count)
        request = {"ask": "rows", "target": self.numbers[name], "row": first, "rows": count}
        _, data = self._ask(request, read)
        return np.frombuffer(data, np.uint8)

    def needs(self, units: Sequence[tuple[str, int, int]]) -> list[tuple[Range, ...]]:
        """What bytes of the files some rows of computed tensors are made of.

        Args:
            units: name, first row and number of rows of each.

        """
        asked = [(self.numbers[name], row, rows) for name, row, rows in units]
        found: list[tuple[Range, ...]] = []
        for start in range(0, len(asked), _MOST_ASKED):
            request = {"ask": "needs", "units": asked[start : start + _MOST_ASKED]}
            answer, _ = self._ask(request, self.read)
            for leaves in answer["needs"]:
                parts = {self.range_of(*leaf) for leaf in leaves}
                found.append(tuple(sorted(parts, key=lambda r: (str(r.file), r.start, r.stop))))
        return found

    def range_of(self, name: str, first: int, count: int) -> Range:
        """Where rows of a stored tensor lie, along its first axis."""
        tensor = self.stored.tensors[name]
        size = tensor.n_bytes // tensor.shape[0] if tensor.shape else tensor.n_bytes
        start = tensor.offset + first * size
        return Range(tensor.file, start, start + count * size)

    @property
    def version(self) -> str:
        """Of the converter that described the checkpoint."""
        assert self._version is not None  # noqa: S101 - it did
        return self._version

    @property
    def pid(self) -> int:
        """The number of the converter's process, which is started if there is none."""
        with self._lock:
            return self._begun().pid

    def close(self) -> None:
        """End the converter's process; it is started again when it is needed."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _begun(self) -> ConverterProcess:
        """The converter's process, which has described the checkpoint."""
        if self._process is None:
            try:
                self.ask_for_description()
            finally:
                self.leave_folder()
        assert self._process is not None  # noqa: S101 - it was started
        return self._process

    def _ask(
        self, request: Mapping[str, Any], read: StoredReader
    ) -> tuple[dict[str, Any], bytearray]:
        with self._lock:
            answer, data = self._begun().ask(request, read)
        if "failed" in answer or "refused" in answer:
            self.close()
            fix = "download it again" if "refused" in answer else "report it, or give a GGUF"
            raise ConverterError(
                f"llama.cpp's converter cannot compute a tensor of {self.stored.path} "
                f"({said(answer) or answer['refused']}); {fix}."
            )
        return answer, data

    def ask_for_description(self) -> tuple[dict[str, Any], Path]:
        """Start the converter and let it describe: what it says, and the file of its header.

        Raises:
            UnknownArchitectureError, ConverterError, TokenizerError: as `describe_by_converter`
                does.

        """
        require_plausible(self.stored.config, self.stored.tensors, self.stored.path)
        require_scales(self.stored.config, self.stored.tensors, self.stored.path)
        if self.stored.repo is None:  # the Hub would be asked once per matrix
            require_groups(self.stored.tensors, self.read, self.stored.path)
        if self._converter is None:
            self._converter = find_converter(self.wish.tree, self.wish.say)
            if self._version not in (None, self._converter.version):
                raise ConverterError(
                    f"{self.stored.path} was described by {self._version}, and here is "
                    f"{self._converter.version}; install the same everywhere."
                )
            self._version = self._converter.version
        unknown = unknown_architecture(self._converter.tree, self.stored.config)
        if unknown is not None and self.wish.projector is None:
            raise _refusal({"refused": f"unknown:{unknown}"}, self.stored, self._converter)
        folder = self._folder = self._link_small_files()
        header = folder.parent / "header.gguf"
        stored = self.stored
        request = {
            "ask": "describe",
            "folder": str(folder),
            "header": str(header),
            "tensors": {t.name: [t.dtype, t.shape] for t in _in_converters_order(stored)},
            "projector": self.wish.projector is not None,
            "mtp": self.wish.mtp,
            "type": self.wish.projector or _own_type(stored.tensors),
        }
        self._process = ConverterProcess(self._converter, folder.parent)
        atexit.register(self.close)
        answer, _ = self._process.ask(request, self.read, self._name_pre_tokenizer)
        if "targets" not in answer:
            self.close()
            raise _refusal(answer, stored, self._converter)
        return answer, header

    def leave_folder(self) -> None:
        """Remove the small files, of which nothing is read any more, rather than when all ends.

        Who is killed would leave them.
        """
        if self._folder is not None:
            remove(self._folder)
            self._folder = None

    def _link_small_files(self) -> Path:
        stored = self.stored
        folder = link_small_files(place_of_small_files(stored), stored.name)
        if stored.read_rows is not None:  # its weights are dequantized, and so is its config
            rewrite_config(folder, stored.config)
        return folder

    def _name_pre_tokenizer(self) -> str:
        from quantkit.checkpoint.tokenizer import name_pre_tokenizer

        return name_pre_tokenizer(place_of_small_files(self.stored), self.stored.config)

    def read(self, name: str, first: int, count: int) -> Any:
        """Rows of a stored tensor along its first axis, read where it lies, or as its view has."""
        if self.stored.read_rows is not None:
            tensor = self.stored.tensors[name]
            if len(tensor.shape) < 2:
                size = tensor.n_bytes // prod(tensor.shape)
                whole = self.stored.read_rows(name, 0, 1)
                return whole[first * size : (first + count) * size]
            each = prod(tensor.shape[1:-1])
            return self.stored.read_rows(name, first * each, count * each)
        found = self.range_of(name, first, count)
        return self._read_range(found.file, found.start, found.stop)

    def _read_direct(self, name: str, first: int, count: int) -> NDArray[np.uint8]:
        if self.stored.read_rows is not None:
            return self.stored.read_rows(name, first, count)
        tensor = self.stored.tensors[name]
        start = tensor.offset + first * tensor.row_bytes
        return self._read_range(tensor.file, start, start + count * tensor.row_bytes)

    def _read_range(self, file: Path, start: int, stop: int) -> NDArray[np.uint8]:
        if start == stop:
            return np.empty(0, np.uint8)
        repo = self.stored.repo
        if repo is not None and not file.is_file():
            from quantkit.checkpoint.remote import fetch_range

            return np.frombuffer(fetch_range(repo, file.name, start, stop), np.uint8)
        return read_stored(SourceTensor("", "U8", (stop - start, 1), file, start, stop - start),
                           0, stop - start)  # fmt: skip


def _refusal(answer: Mapping[str, Any], checkpoint: Checkpoint, converter: Converter) -> Exception:
    """What a description that was not given is told as."""
    path = checkpoint.path
    kind, _, what = str(answer.get("refused", "")).partition(":")
    if kind == "unknown":
        return UnknownArchitectureError(
            f"{path} is of the architecture {what}, which neither quantkit nor {converter.version} "
            "knows; give a GGUF of it that a newer llama.cpp made, or build with that llama.cpp's "
            "folder: quantkit build --llama-cpp DIR."
        )
    if kind == "code":
        return ConverterError(
            f"{path} wants its own code to be run ({what}), and quantkit never runs code that "
            "comes with a model; give a GGUF of it."
        )
    if kind == "tokenizer":
        return TokenizerError(what)
    if kind == "mtp":
        return ConverterError(
            "--mtp and --no-mtp are for models with layers that predict further tokens, and "
            f"{what} has none that the converter knows; leave it out."
        )
    reason = said(answer) or str(answer.get("refused"))
    if answer.get("is_of_the_form"):
        return ConverterError(
            f"{path} is stored in a form that llama.cpp's converter does not read ({reason}); give "
            "the original checkpoint that it was made from, or a GGUF of it."
        )
    try:
        require_sound(place_of_small_files(checkpoint))
    except CheckpointError as error:
        return error
    return ConverterError(
        f"llama.cpp's converter cannot describe {path} ({reason}); check that it is whole, or "
        "give a GGUF of it."
    )


def place_of_small_files(checkpoint: Checkpoint) -> Path:
    """The checkpoint's folder; on a machine that lacks it, what the Hub's cache there has.

    Raises:
        CheckpointError: they cannot be downloaded.

    """
    repo = checkpoint.repo
    if repo is None or checkpoint.path.is_dir():
        return checkpoint.path
    from quantkit.checkpoint.remote import download

    wanted = [name for name in repo.sizes if is_for_converters(name) or name == "README.md"]
    found = {name: download(repo, name) for name in wanted}
    return found["config.json"].parent


def _in_converters_order(checkpoint: Checkpoint) -> list[SourceTensor]:
    """The tensors as the converter meets them: safetensors by name, file by file."""
    tensors = list(checkpoint.tensors.values())
    if checkpoint.files[0].suffix != ".safetensors":
        return tensors
    return sorted(tensors, key=lambda tensor: (str(tensor.file), tensor.name))


def _own_type(tensors: Mapping[str, SourceTensor]) -> str:
    """The type of the unquantized GGUF, which keeps the numbers of most matrices."""
    counts: dict[str, int] = dict.fromkeys(("BF16", "F16", "F32"), 0)
    for tensor in tensors.values():
        if tensor.dtype in counts and len(tensor.shape) > 1:
            counts[tensor.dtype] += prod(tensor.shape)
    best = max(counts, key=lambda dtype: counts[dtype])
    return best.lower() if counts[best] else "bf16"
