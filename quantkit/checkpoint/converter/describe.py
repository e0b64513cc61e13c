"""A checkpoint as llama.cpp's converter would write it: one more view, and the model in it."""

import atexit
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint, Description, Range, StoredReader, Tokens
from quantkit.checkpoint.converter.hyperparameters import mend_hyperparameters
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
from quantkit.checkpoint.converter.tokens import mend
from quantkit.checkpoint.gguf import Header, read_entries, read_header
from quantkit.checkpoint.gguf_source import as_ggml_counts, named_target
from quantkit.checkpoint.names import is_for_converters
from quantkit.checkpoint.rows import read_stored
from quantkit.core.errors import (
    CheckpointError,
    ConverterError,
    GGUFError,
    TokenizerError,
    UnknownArchitectureError,
)
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.families.facts import facts_of
from quantkit.families.model import Block, Model

_MOST_ASKED = 4096  # units in a question: a large model has hundreds of thousands
_LAYERS = "blk."  # of a text model
_IN_A_LAYER = re.compile(r"((?:[av]\.)?blk\.)(\d+)\.(.+)")
_TOKENS = "tokenizer.ggml.tokens"
# What no GGUF needs: constants, and ranges of activations.
_BESIDE = (
    *("inv_freq", "masked_bias", ".attention.bias", "input_scale", "activation_scale"),
    *("k_scale", "v_scale", "position_ids", "num_batches_tracked", "input_global_scale"),
)
# Where a model says how an image or a sound is prepared, in the order of their age.
_PREPARED = ("preprocessor_config.json", "processor_config.json")
# Tensors of a part that sees or hears, as published models name them.
_TOWER = re.compile(
    r"vis(ion|ual)|image|img_|audio|speech|whisper|multi_?modal|mm_proj|connector|^mlp1\."
)


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a model is converted, and by whom.

    ``tree`` is a user's own llama.cpp, None for the pinned converter. ``projector``: its vision or
    audio part instead of its text part, in the type of that name, such as ``f16``. ``mtp``: whether
    layers that predict further tokens come along; None for what the converter does. ``say`` is
    told that something is fetched.
    """

    tree: Path | None = None
    projector: str | None = None
    mtp: bool | None = None
    say: Callable[[str], None] = _silent

    @property
    def is_for_converter(self) -> bool:
        """Whether something is asked for that only the converter does."""
        return self.tree is not None or self.mtp is not None


def describe_by_converter(checkpoint: Checkpoint, wish: Wish) -> Checkpoint:
    """A checkpoint under its own names and dtypes, as the converter would write it.

    Of its weights nothing is read but values that decide what is written. Tensors that lie in
    the files as they would be written are read there; the others are computed by the converter's
    process, some rows at a time.

    Args:
        checkpoint: all tensors as they are stored, of any dtype.
        wish: what is to be described.

    Raises:
        UnknownArchitectureError: the converter does not know the model.
        ConverterError: it cannot be had, cannot describe the model, or wants what it must not.
        TokenizerError: nobody knows how the tokenizer splits text.

    """
    rows = ConvertedRows(checkpoint, wish)
    return rows.describe()


def describe_alike(part: Checkpoint, checkpoint: Checkpoint) -> Checkpoint:
    """A part of a checkpoint, described by whom and as the whole was; as it is, if that was not.

    Raises:
        ConverterError, CheckpointError: as `describe_by_converter` does.

    """
    if checkpoint.description is None:
        return part
    rows = checkpoint.description.rows
    assert isinstance(rows, ConvertedRows)  # noqa: S101 - it described
    return describe_by_converter(part, rows.wish)


def describe_projector(checkpoint: Checkpoint, kind: str) -> Checkpoint | None:
    """The vision or audio part of a checkpoint whose text part is described, as a checkpoint.

    Args:
        checkpoint: what `describe_by_converter` gave.
        kind: the converter's type: ``f16``, ``bf16`` or ``q8_0``. What is kept in others for its
            sake, the converter decides.

    Returns:
        None where it has none, or the converter knows none.

    Raises:
        ConverterError: it has one, and the converter cannot describe it.

    """
    description = checkpoint.description
    if description is None:
        return None
    rows = description.rows
    assert isinstance(rows, ConvertedRows)  # noqa: S101 - it described
    stored = rows.stored
    if not description.has_projector:
        if not _sees_or_hears(stored):
            return None
        raise ConverterError(
            f"{description.version} knows no vision or audio part of {stored.path}."
        )
    try:
        found = ConvertedRows(stored, replace(rows.wish, projector=kind, mtp=None)).describe()
    except ConverterError as error:
        if not _sees_or_hears(stored):
            return None
        place = _place_of_small_files(stored)
        if "KeyError" in str(error) and not any((place / name).is_file() for name in _PREPARED):
            raise ConverterError(
                f"{stored.path} has no {_PREPARED[0]}, which says how what it sees or hears is "
                "prepared; download that, too."
            ) from None
        raise
    return found if found.tensors else None


def _sees_or_hears(stored: Checkpoint) -> bool:
    return any(map(_TOWER.search, stored.tensors))


class ConvertedRows:
    """Rows of a converted checkpoint, those that are computed from the converter's process.

    It goes to other processes as what it was made of, and starts a converter of its own there.
    """

    def __init__(self, checkpoint: Checkpoint, wish: Wish) -> None:
        self.stored = checkpoint
        self.wish = wish
        self._process: ConverterProcess | None = None
        self._converter: Converter | None = None
        self._version: str | None = None  # that described it, here or elsewhere
        self._numbers: dict[str, int] = {}
        self._folder: Path | None = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        wish = replace(self.wish, say=_silent)
        return {"stored": self.stored, "wish": wish, "version": self._version,
                "numbers": self._numbers}  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["stored"], state["wish"])  # type: ignore[misc]
        self._version, self._numbers = state["version"], state["numbers"]

    def describe(self) -> Checkpoint:
        """Start the converter and let it describe; see `describe_by_converter`."""
        stored = self.stored
        try:
            answer, header_file = self._ask_for_description()
            header, tokens, remarks = self._mended(_read_header(header_file, stored))
            header, mended, more = mend_hyperparameters(stored.config, header)
        finally:
            self._leave_folder()
        infos = {tensor.name: tensor for tensor in header.tensors}
        tensors = dict(stored.tensors)
        targets, numbers = [], {}
        for number, found in enumerate(answer["targets"]):
            name, runs = found["name"], found["runs"]
            shape = infos[name].shape
            if self.wish.projector is None:  # else it stays as it is, and so does its header
                shape = as_ggml_counts(shape)
            if runs is None or not _can_be_read(runs, stored.tensors):
                numbers[name] = number
                tensors[name] = _computed(stored, name, found["stored"], shape)
                runs = _whole(name, shape)
            if self.wish.projector is not None:  # it has no experts, but convolutions
                runs = [_joined(run for matrix in runs for run in matrix)]
            blocks = tuple(Block(*run) for matrix in runs for run in matrix)
            targets.append(named_target(name, shape, blocks, found["stored"]))
        self._numbers = numbers
        direct = {block.source for target in targets for block in target.blocks}
        if not numbers:
            self.close()
        assert self._converter is not None  # noqa: S101 - it described
        return replace(
            stored,
            tensors={name: tensor for name, tensor in tensors.items() if name in direct},
            read_rows=self if numbers or stored.read_rows else None,
            description=Description(
                header,
                tuple(targets),
                self._converter.version,
                frozenset(numbers),
                self,
                answer["n_read"],
                stored.tensors,
                self.wish.mtp,
                tokens,
                answer["has_projector"],
                mended,
            ),
            remarks=(
                *stored.remarks,
                *remarks,
                *more,
                *self._left_out(answer["unused"]),
                *_uneven([target.name for target in targets]),
            ),
        )

    def _left_out(self, unused: Sequence[str]) -> tuple[str, ...]:
        """A remark on tensors of which nothing is written, if a text model could need them."""
        if self.wish.projector is not None or self.wish.mtp is False:
            return ()
        lacking = [n for n in unused if not (_TOWER.search(n) or n.endswith(_BESIDE))]
        if not lacking:
            return ()
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        return (
            f"llama.cpp's converter leaves out {quoted(lacking[0])}{more} of the checkpoint's "
            f"{len(self.stored.tensors):,} tensors.",
        )

    def _mended(self, header: Header) -> tuple[Header, Tokens, list[str]]:
        """The header with what the converter gets wrong of the tokenizer put right."""
        if self.wish.projector or _TOKENS not in header.metadata:
            return header, Tokens(), []
        library = self.tokenizer(whole=False)
        return mend(self.stored.path, self.stored.config, header, library)

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
        if name not in self._numbers:
            return self._read_direct(name, first, count)
        request = {"ask": "rows", "target": self._numbers[name], "row": first, "rows": count}
        _, data = self._ask(request, read)
        return np.frombuffer(data, np.uint8)

    def needs(self, units: Sequence[tuple[str, int, int]]) -> list[tuple[Range, ...]]:
        """What bytes of the files some rows of computed tensors are made of.

        Args:
            units: name, first row and number of rows of each.

        """
        asked = [(self._numbers[name], row, rows) for name, row, rows in units]
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
                self._ask_for_description()
            finally:
                self._leave_folder()
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

    def _ask_for_description(self) -> tuple[dict[str, Any], Path]:
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

    def _leave_folder(self) -> None:
        """Remove the small files, of which nothing is read any more, rather than when all ends.

        Who is killed would leave them.
        """
        if self._folder is not None:
            remove(self._folder)
            self._folder = None

    def _link_small_files(self) -> Path:
        stored = self.stored
        folder = link_small_files(_place_of_small_files(stored), stored.name)
        if stored.read_rows is not None:  # its weights are dequantized, and so is its config
            rewrite_config(folder, stored.config)
        return folder

    def _name_pre_tokenizer(self) -> str:
        from quantkit.checkpoint.tokenizer import name_pre_tokenizer

        return name_pre_tokenizer(_place_of_small_files(self.stored), self.stored.config)

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


def _uneven(names: Sequence[str]) -> tuple[str, ...]:
    """A remark on what some layers have and others lack, where llama.cpp runs without it.

    In a text model those are biases. Of a part that sees or hears llama.cpp misses next to nothing,
    not even the weight of a bias that is there.
    """
    layers: dict[tuple[str, str], set[str]] = defaultdict(set)
    there = set(names)
    lone = []
    for name in names:
        weight = name.removesuffix("bias") + "weight"
        if match := _IN_A_LAYER.fullmatch(name):
            tower, number, part = match.groups()
            layers[tower, part].add(number)
            if tower != _LAYERS and name.endswith(".bias") and weight not in there:
                lone.append(weight)
    lacking = lone + [
        f"{tower}{number}.{part}"
        for (tower, part), having in layers.items()
        for number in sorted(_needing(tower, part, layers) - having)
    ]
    if not lacking:
        return ()
    more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
    return (
        f"The checkpoint has nothing for {lacking[0]}{more}, which other layers have; llama.cpp "
        "runs without it, and so may not be the model.",
    )


def _needing(tower: str, part: str, layers: Mapping[tuple[str, str], set[str]]) -> set[str]:
    """The layers that should have a part, since others have it."""
    if tower != _LAYERS:
        return {n for (of, _), numbers in layers.items() if of == tower for n in numbers}
    if part.endswith(".bias"):
        return layers.get((tower, part.removesuffix("bias") + "weight"), set())
    return set()


def described_model(checkpoint: Checkpoint) -> Model:
    """The model that the converter describes.

    Raises:
        ConverterError: llama.cpp could not load what it describes.

    """
    description = checkpoint.description
    assert description is not None  # noqa: S101 - only what is described has one
    metadata = description.header.metadata
    arch = metadata["general.architecture"]
    try:
        facts = facts_of(arch, metadata)
    except GGUFError as error:
        raise ConverterError(
            f"llama.cpp's converter describes {checkpoint.path} in a way that llama.cpp does not "
            f"take ({str(error).rstrip('.')}); give a GGUF of it."
        ) from None
    blocks = (block.source for target in description.targets for block in target.blocks)
    return Model(
        family=arch,
        arch=arch,
        sources={name: checkpoint.tensors[name].shape for name in blocks},
        targets=description.targets,
        facts=facts,
        keys=description.header.entries,
    )


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
        require_sound(_place_of_small_files(checkpoint))
    except CheckpointError as error:
        return error
    return ConverterError(
        f"llama.cpp's converter cannot describe {path} ({reason}); check that it is whole, or "
        "give a GGUF of it."
    )


def _read_header(file: Path, checkpoint: Checkpoint) -> Header:
    """What the converter would write as the header of its GGUF."""
    try:
        header = read_header(file, 2**62)
        return replace(header, entries=read_entries(file, header))
    except GGUFError as error:
        reason = str(error).partition(": ")[2].rstrip(".")
        raise ConverterError(
            f"llama.cpp's converter describes {checkpoint.path} as no sound GGUF ({reason}); check "
            "that it is whole, or give a GGUF of it."
        ) from None


def _place_of_small_files(checkpoint: Checkpoint) -> Path:
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


def _can_be_read(runs: Any, tensors: Mapping[str, SourceTensor]) -> bool:
    return all(tensors[run[0]].dtype in FLOAT_BYTES for matrix in runs for run in matrix)


def _computed(
    checkpoint: Checkpoint, name: str, stored: str, shape: tuple[int, ...]
) -> SourceTensor:
    """A tensor that lies nowhere, in the type that the converter's process gives its rows in."""
    from quantkit.encodings.encoding import encoding

    dtype = "F32" if stored in FLOAT_BYTES else stored
    n_bytes = prod(shape[:-1]) * encoding(dtype).row_bytes(shape[-1])
    return SourceTensor(name, dtype, shape, checkpoint.files[0], 0, n_bytes)


def _whole(name: str, shape: tuple[int, ...]) -> list[list[tuple[str, int, int]]]:
    rows = shape[-2] if len(shape) > 1 else 1
    return [[(name, matrix * rows, rows)] for matrix in range(prod(shape[:-2]))]


def _joined(runs: Iterable[Sequence[Any]]) -> list[tuple[str, int, int]]:
    """Runs of rows, of which none goes on where the one before it ends."""
    found: list[tuple[str, int, int]] = []
    for source, row, rows in runs:
        if found and found[-1][0] == source and sum(found[-1][1:]) == row:
            row, rows = found[-1][1], found.pop()[2] + rows
        found.append((source, row, rows))
    return found
