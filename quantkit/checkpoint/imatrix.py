"""Importance matrices: how much each input column of each weight matters.

That is the mean square of the activations it met.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from quantkit.core.errors import ImatrixError
from quantkit.families.model import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Columns: TypeAlias = "NDArray[np.float32]"

_LAYER = re.compile(r"blk\.([0-9]+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Imatrix:
    """Importance per tensor name: float32, experts one after the other, columns within each."""

    path: Path
    sha256: str
    entries: Mapping[str, _Columns]
    chunk_count: int
    datasets: tuple[str, ...]

    def columns_of(self, target: Target) -> "_Columns | None":
        """Importance of each column: shape (matrices, columns); None where there is no entry.

        Raises:
            ImatrixError: the entry is of another size. Only the token embeddings may differ, as
                in llama-quantize; they then go without.

        """
        values = self.entries.get(target.name)
        if values is None:
            return None
        matrices = target.shape[0] if len(target.shape) == 3 else 1
        if values.size != matrices * target.columns:
            if target.name in _EMBEDDINGS:
                return None
            raise ImatrixError(
                f"{self.path} has {values.size} values for {target.name}, which needs "
                f"{matrices * target.columns}: it was made for another model."
            )
        return values.reshape(matrices, target.columns)


_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# Tensors that llama-imatrix sees only when it is asked to, or never.
_SELDOM_SEEN = {"token_embd.weight", "output.weight"}
_FEW, _MANY = 3, 12  # names that are written out


def require_same_model(
    imatrix: Imatrix, targets: Iterable[Target], wanted: Sequence[Target]
) -> str | None:
    """Refuse an importance matrix of another model; what to say of one that lacks some entries.

    llama-quantize takes either, and prints a line for every tensor without an entry.

    Args:
        imatrix: what was read.
        targets: all tensors of the model.
        wanted: those whose encoding can use importance.

    Raises:
        ImatrixError: it has entries for tensors that the model has not, or none for its tensors.

    """
    names = {target.name for target in targets} | _SELDOM_SEEN
    strange = [name for name in imatrix.entries if name not in names]
    usual = [target for target in wanted if target.name not in _SELDOM_SEEN]
    missing = [target.name for target in usual if target.name not in imatrix.entries]
    if strange or (missing and len(missing) == len(usual)):
        faults = []
        if strange:
            listed = _listed(strange, _FEW)
            faults.append(f"has entries for {listed}, which this model does not have")
        if missing:
            faults.append(f"has none for {_listed(missing, _FEW)}")
        raise ImatrixError(
            f"{imatrix.path} was made for another model: it {', and '.join(faults)}; make one from "
            "this model with quantkit calibrate or llama-imatrix."
        )
    if not missing:
        return None
    count = f"{len(missing)} tensors" if len(missing) > 1 else "1 tensor"
    return (
        f"{imatrix.path.name} has no entry for {count}, quantized without importance: "
        f"{_listed(missing, _MANY)}."
    )


def _listed(names: Sequence[str], most: int) -> str:
    """Names one by one, or where there are more those of a role as ``blk.0-55.ffn_up.weight``."""
    if len(names) <= most:
        return ", ".join(names)
    layers: dict[str, list[int]] = defaultdict(list)
    listed = []
    for name in names:
        if match := _LAYER.fullmatch(name):
            layers[match[2]].append(int(match[1]))
        else:
            listed.append(name)
    for rest, numbers in layers.items():
        first, last = min(numbers), max(numbers)
        is_whole = len(numbers) > 1 and sorted(numbers) == list(range(first, last + 1))
        span = f"{first}-{last}" if is_whole else ",".join(map(str, sorted(numbers)))
        listed.append(f"blk.{span}.{rest}")
    more = f" and {len(listed) - _MANY} more" if len(listed) > _MANY else ""
    return ", ".join(listed[:_MANY]) + more


def load_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, normalized as llama-quantize does before it uses one.

    Raises:
        ImatrixError: the file is missing, of neither format, cut short, or holds values that no
            mean of squares can have.

    """
    from quantkit.checkpoint.imatrix_file import means, read_content, require_sound

    content, sha256 = read_content(path)
    entries = {name: means(*raw) for name, raw in content.entries.items()}
    require_sound(path, entries)
    return Imatrix(path, sha256, entries, content.chunk_count, content.datasets)


def stand_in(
    path: Path, targets: Iterable[Target], chunks: int, datasets: tuple[str, ...]
) -> Imatrix:
    """What has the names, the text and the size of a matrix that is not made yet."""
    import numpy as np

    entries = {
        target.name: np.broadcast_to(np.float32(1), math.prod(target.shape[:-2]) * target.columns)
        for target in targets
        if target.is_linear
    }
    return Imatrix(path, "", entries, chunks, datasets)
