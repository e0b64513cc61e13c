"""A checkpoint as llama.cpp's converter would write it: one more view, and the model in it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from quantkit.checkpoint.checkpoint import Checkpoint, Description, Tokens
from quantkit.checkpoint.converter.hyperparameters import mend_hyperparameters
from quantkit.checkpoint.converter.rows import ConvertedRows, place_of_small_files
from quantkit.checkpoint.converter.tokens import mend
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.gguf import Header, read_entries, read_header
from quantkit.checkpoint.gguf_source import as_ggml_counts, named_target
from quantkit.core.errors import ConverterError, GGUFError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.families.facts import facts_of
from quantkit.families.model import Block, Model

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


def describe_by_converter(checkpoint: Checkpoint, wish: ConverterOptions) -> Checkpoint:
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
    return _describe(ConvertedRows(checkpoint, wish))


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
        found = _describe(ConvertedRows(stored, replace(rows.wish, projector=kind, mtp=None)))
    except ConverterError as error:
        if not _sees_or_hears(stored):
            return None
        place = place_of_small_files(stored)
        if "KeyError" in str(error) and not any((place / name).is_file() for name in _PREPARED):
            raise ConverterError(
                f"{stored.path} has no {_PREPARED[0]}, which says how what it sees or hears is "
                "prepared; download that, too."
            ) from None
        raise
    return found if found.tensors else None


def _describe(rows: ConvertedRows) -> Checkpoint:
    stored, wish = rows.stored, rows.wish
    try:
        answer, header_file = rows.ask_for_description()
        header, tokens, remarks = _mended(rows, _read_header(header_file, stored))
        header, mended, more = mend_hyperparameters(stored.config, header)
    finally:
        rows.leave_folder()
    infos = {tensor.name: tensor for tensor in header.tensors}
    tensors = dict(stored.tensors)
    targets, numbers = [], {}
    for number, found in enumerate(answer["targets"]):
        name, runs = found["name"], found["runs"]
        shape = infos[name].shape
        if wish.projector is None:  # else it stays as it is, and so does its header
            shape = as_ggml_counts(shape)
        if runs is None or not _can_be_read(runs, stored.tensors):
            numbers[name] = number
            tensors[name] = _computed(stored, name, found["stored"], shape)
            runs = _whole(name, shape)
        if wish.projector is not None:  # it has no experts, but convolutions
            runs = [_joined(run for matrix in runs for run in matrix)]
        blocks = tuple(Block(*run) for matrix in runs for run in matrix)
        targets.append(named_target(name, shape, blocks, found["stored"]))
    rows.numbers = numbers
    direct = {block.source for target in targets for block in target.blocks}
    if not numbers:
        rows.close()
    return replace(
        stored,
        tensors={name: tensor for name, tensor in tensors.items() if name in direct},
        read_rows=rows if numbers or stored.read_rows else None,
        description=Description(
            header,
            tuple(targets),
            rows.version,
            frozenset(numbers),
            rows,
            answer["n_read"],
            stored.tensors,
            wish.mtp,
            tokens,
            answer["has_projector"],
            mended,
        ),
        remarks=(
            *stored.remarks,
            *remarks,
            *more,
            *_left_out(rows, answer["unused"]),
            *_uneven([target.name for target in targets]),
        ),
    )


def _left_out(rows: ConvertedRows, unused: Sequence[str]) -> tuple[str, ...]:
    """A remark on tensors of which nothing is written, if a text model could need them."""
    if rows.wish.projector is not None or rows.wish.mtp is False:
        return ()
    lacking = [n for n in unused if not (_TOWER.search(n) or n.endswith(_BESIDE))]
    if not lacking:
        return ()
    more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
    return (
        f"llama.cpp's converter leaves out {quoted(lacking[0])}{more} of the checkpoint's "
        f"{len(rows.stored.tensors):,} tensors.",
    )


def _mended(rows: ConvertedRows, header: Header) -> tuple[Header, Tokens, list[str]]:
    """The header with what the converter gets wrong of the tokenizer put right."""
    if rows.wish.projector or _TOKENS not in header.metadata:
        return header, Tokens(), []
    library = rows.tokenizer(whole=False)
    return mend(rows.stored.path, rows.stored.config, header, library)


def _sees_or_hears(stored: Checkpoint) -> bool:
    return any(map(_TOWER.search, stored.tensors))


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
            f"accept ({str(error).rstrip('.')}); give a GGUF of it."
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
