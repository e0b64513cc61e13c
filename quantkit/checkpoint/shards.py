"""Which files of a checkpoint folder hold its weights, and the tensors in all of them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from quantkit.checkpoint.names import WHOLE, index_name, weight_files, weights_like
from quantkit.checkpoint.safetensors import is_unneeded_buffer
from quantkit.core.documents import read_object
from quantkit.core.errors import CheckpointError
from quantkit.core.names import is_plain_name
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor

_LISTED = 3


# The tensors of weight files, file by file, in the order asked for.
HeaderReader = Callable[[tuple[Path, ...]], Iterable[dict[str, SourceTensor]]]


def read_index(path: Path, names: list[str]) -> tuple[Path, dict[str, str]] | None:
    """The index that the weights go by, and which file it puts each tensor in.

    There is none beside a whole model that it does not name: transformers then reads no index.
    """
    files = weight_files(names)
    index = index_name(names)
    if index not in names:
        return None
    weight_map = read_weight_map(path / index)
    if files and files[0] in WHOLE and set(weight_map.values()) != set(files):
        return None
    return path / index, weight_map


def left_out(
    path: Path, names: list[str], files: tuple[Path, ...], *, indexed: bool
) -> tuple[str, ...]:
    """A remark on what lies beside a whole model and would be another one."""
    whole = files[0].name
    if whole not in WHOLE:
        return ()
    others = [name for name in weights_like(names, whole) if name != whole]
    index = index_name(names)
    if index in names and not indexed:
        others.append(index)
    if not others:
        return ()
    return (
        f"{path} holds {whole}, which alone is built, as transformers loads it alone; "
        f"{some_of(others)} beside it {'is' if len(others) == 1 else 'are'} left out. Remove what "
        "is of another model.",
    )


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name, as an index gives them; every file lies beside the index."""
    weight_map = read_object(index, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again.")
    for tensor, file in weight_map.items():
        if not is_plain_name(file):
            raise CheckpointError(
                f"{index} puts tensor {quoted(tensor)} in {quoted(file)}, which is not the name of "
                "a file in its folder; don't trust this checkpoint, download it again from its "
                "origin."
            )
    return weight_map


def find_shards(path: Path, names: list[str], weight_map: dict[str, str]) -> tuple[Path, ...]:
    """The weight files that an index names, in the order of their names."""
    files = sorted(set(weight_map.values()))
    missing = sorted(set(files).difference(names))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(files)} weight files that its index names "
            f"({some_of(missing)}); download the checkpoint again."
        )
    return tuple(path / file for file in files)


def merge(files: tuple[Path, ...], read_headers: HeaderReader) -> dict[str, SourceTensor]:
    """The tensors of all files, none of them twice."""
    tensors: dict[str, SourceTensor] = {}
    for file, header in zip(files, read_headers(files), strict=True):
        for name, tensor in header.items():
            if name in tensors:
                raise CheckpointError(
                    f"{file} and {tensors[name].file.name} both hold tensor {quoted(name)}; remove "
                    "the one that does not belong to the checkpoint, or download it again."
                )
            tensors[name] = tensor
    return tensors


def check_index(index: Path, weight_map: dict[str, str], tensors: dict[str, SourceTensor]) -> None:
    """Check that the index and the weight files name the same tensors in the same places."""
    advice = "index and weights come from different versions, so download the checkpoint again."
    for name, tensor in tensors.items():
        file = weight_map.get(name, tensor.file.name)
        if file != tensor.file.name:
            raise CheckpointError(
                f"{index} puts tensor {quoted(name)} in {quoted(file)}, but it is in "
                f"{quoted(tensor.file.name)}; {advice}"
            )
    # The header leaves out buffers that no model needs, the index does not.
    missing = [n for n in weight_map if n not in tensors and not is_unneeded_buffer(n)]
    if missing:
        where = sorted({weight_map[name] for name in missing})
        raise CheckpointError(
            f"{index} puts {len(missing)} of its {len(weight_map)} tensors in files that lack them "
            f"({some_of(missing)}, missing in {some_of(where)}); {advice}"
        )
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        where = sorted({tensors[name].file.name for name in extra})
        raise CheckpointError(
            f"{index} does not list {len(extra)} of the tensors in {some_of(where)} "
            f"({some_of(extra)}); {advice}"
        )


def some_of(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    text = ", ".join(quoted(name) for name in names[:_LISTED])
    more = len(names) - _LISTED
    return f"{text} and {more:,} more" if more > 0 else text
