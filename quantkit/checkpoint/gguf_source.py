"""A GGUF as a source: its tensors where they lie, and the model that its header describes."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path, PurePosixPath

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.gguf import Header, read_entries, read_header
from quantkit.checkpoint.names import shard_names
from quantkit.checkpoint.remote_gguf import cached_file, fetch_header
from quantkit.core.errors import GGUFError
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor
from quantkit.families.facts import facts_of, known_architectures
from quantkit.families.model import Block, Model, Target

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
# What llama-quantize leaves out and what it says anew, at the end.
_OF_ONE_FILE = {"split.no", "split.count", "split.tensors.count"}
_LONGEST_NAME = 63  # bytes: GGML_MAX_NAME of ggml.h, with the zero at the end
_ALIGNMENT = 32  # what llama-quantize writes, whatever the source says


def open_gguf(path: Path) -> Checkpoint:
    """Read the headers of a GGUF, or of all shards of a split one, of which the first is named.

    Raises:
        GGUFError: a file is missing or unsound, or the shards are not of one model.

    """
    files = shard_names(path)
    headers = [read_header(file) for file in files]
    return join_shards(files, headers, [file.stat().st_size for file in files])


def open_hub_gguf(repo_id: str, name: str, revision: str | None = None) -> Checkpoint:
    """The same for a GGUF on the Hub, of which only the headers are read, by range.

    Raises:
        CheckpointError: the repository cannot be reached, or has no such file.
        GGUFError: as `open_gguf` does.

    """
    from huggingface_hub.constants import is_offline_mode

    from quantkit.checkpoint.remote import open_repo

    names = shard_names(PurePosixPath(name))
    if is_offline_mode():
        cached = [cached_file(repo_id, str(shard), revision) for shard in names]
        return open_gguf(cached[0])
    folder = "".join(f"{part}/" for part in names[0].parent.parts)
    repo = open_repo(repo_id, revision).within(folder)
    fetched = [fetch_header(repo, shard.name) for shard in names]
    sizes = [found.n_bytes for found in fetched]
    headers = [read_header(found.here, found.n_bytes) for found in fetched]
    files = [found.file for found in fetched]
    return replace(join_shards(files, headers, sizes, fetched[0].here), repo=repo)


def join_shards(
    files: Sequence[Path], headers: Sequence[Header], sizes: Sequence[int], here: Path | None = None
) -> Checkpoint:
    """One source of all shards, from their headers.

    Args:
        files: where they lie, or would.
        headers: of each, as it was read.
        sizes: of each, in bytes.
        here: what holds the first one's header, if that is another file.

    Raises:
        GGUFError: they are not sound as a source, or not of one model.

    """
    _require_text(files[0])
    first = headers[0]
    tensors: dict[str, SourceTensor] = {}
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        _check_end(file, header, sizes[number])
        _check_shard(file, header, number, len(files))
        for tensor in header.tensors:
            if not _is_name(tensor.name):
                raise GGUFError(
                    f"{file} has a tensor called {quoted(tensor.name)}, and llama.cpp takes names "
                    f"of 1 to {_LONGEST_NAME} bytes of text; make it again."
                )
            if tensor.name in tensors:
                raise GGUFError(
                    f"{file} and {tensors[tensor.name].file.name} both hold tensor "
                    f"{quoted(tensor.name)}; download them again, or make them again."
                )
            tensors[tensor.name] = SourceTensor(
                tensor.name,
                tensor.encoding.name,
                as_ggml_counts(tensor.shape),
                file,
                header.data_offset + tensor.offset,
                tensor.n_bytes,
            )
    count = first.metadata.get("split.tensors.count", len(tensors))
    if count != len(tensors):
        raise GGUFError(
            f"{files[0]} promises {quoted(count)} tensors in all shards, and there are "
            f"{len(tensors)}; download them again, or make them again."
        )
    if not tensors:
        raise GGUFError(f"{files[0]} holds no tensors; give the GGUF of a whole model.")
    entries = read_entries(here or files[0], first)
    return Checkpoint(files[0], {}, tensors, tuple(files), header=replace(first, entries=entries))


def _require_text(file: Path) -> None:
    """Refuse a path that is no text: a manifest has it, and could not be read any more."""
    try:
        os.path.realpath(file).encode()  # which goes round in no circle, unlike Path.resolve
    except UnicodeEncodeError:
        raise GGUFError(
            f"{quoted(str(file))} has a name that is not UTF-8; rename it, or its folder."
        ) from None


def _is_name(name: str) -> bool:
    """Whether llama.cpp takes a tensor's name, and it was text: what was not, has replacements."""
    return 0 < len(name.encode()) <= _LONGEST_NAME and "\ufffd" not in name


def _check_end(file: Path, header: Header, n_bytes: int) -> None:
    """Refuse a file with something behind its last tensor, which would be read for nothing."""
    last = max((t.offset + t.n_bytes for t in header.tensors), default=0)
    end = -(-(header.data_offset + last) // _ALIGNMENT) * _ALIGNMENT
    if n_bytes > end + _ALIGNMENT:
        raise GGUFError(
            f"{file} has {n_bytes - end:,} bytes after its last tensor, which belong to nothing; "
            "download it again, or make it again."
        )


def as_ggml_counts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the outer dimensions of 1, which ggml does not count."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_shard(file: Path, header: Header, number: int, count: int) -> None:
    said = header.metadata.get("split.no", 0), header.metadata.get("split.count", 1)
    if count == 1 and said[1] not in (0, 1):
        raise GGUFError(
            f"{file} says that it is one of {quoted(said[1])} shards, but its name does not; give "
            "all of them their original names."
        )
    if said != (number, count) and said != (0, 0):
        raise GGUFError(
            f"{file} says that it is shard {quoted(said[0])} of {quoted(said[1])} (counted from "
            f"0), but it is named as {number} of {count}; give all shards their original names."
        )


def describe_gguf(checkpoint: Checkpoint) -> Model:
    """The model that a GGUF's header describes, every tensor of it as it is stored.

    Raises:
        GGUFError: it is not a model, or none that llama.cpp knows.

    """
    header = checkpoint.header
    assert header is not None  # noqa: S101 - only a GGUF is described by its header
    path, metadata = checkpoint.path, header.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise GGUFError(f"{path} holds {quoted(kind)} and no model; give the GGUF of a model.")
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise GGUFError(f"{path} has no general.architecture; make it again.")
    if metadata.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        raise GGUFError(
            f"{path} is aligned to {metadata['general.alignment']} bytes, and quants are to "
            f"{_ALIGNMENT}; convert the model without general.alignment."
        )
    if arch not in known_architectures():
        raise GGUFError(
            f"{path} is of the architecture {quoted(arch)}, which llama.cpp does not know; check "
            "the file, or update quantkit."
        )
    for key in ("general.name", "general.basename"):
        if not isinstance(metadata.get(key, ""), str):
            raise GGUFError(
                f"{path} gives {key} as {quoted(metadata[key])}, which is not text; make it again."
            )
    try:
        facts = facts_of(arch, metadata)
    except GGUFError as error:
        raise GGUFError(f"{path}: {error}") from None
    return Model(
        family=arch,
        arch=arch,
        sources={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
        targets=tuple(map(_target, checkpoint.tensors.values())),
        facts=facts,
        keys=tuple(entry for entry in header.entries if entry.key not in _OF_ONE_FILE),
    )


def _target(tensor: SourceTensor) -> Target:
    """A tensor as a target that is made of itself."""
    name, shape = tensor.name, tensor.shape
    rows = shape[-2] if len(shape) > 1 else 1
    matrices = prod(shape[:-2])
    blocks = tuple(
        Block(name, 0, rows, matrix if len(shape) > 2 else None) for matrix in range(matrices)
    )
    return named_target(name, shape, blocks, tensor.dtype)


def named_target(
    name: str, shape: tuple[int, ...], blocks: tuple[Block, ...], stored: str
) -> Target:
    """A tensor of a GGUF as a target, whose role and layer its name tells."""
    match = _LAYER.match(name)
    part = match[2] if match else name
    role = part.removesuffix(".weight").replace(".bias", "_bias")
    layer = int(match[1]) if match else None
    return Target(name, role, shape, layer, blocks, stored=stored)
