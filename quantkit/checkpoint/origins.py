"""Which stored tensors make which parameter, as transformers' own conversion mapping says."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantkit.checkpoint.mxfp4 import BLOCKS, SCALES, Packed
from quantkit.core.errors import CheckpointError
from quantkit.core.printable import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_STACKED = [("MergeModulelist", 0)]  # of transformers: an axis for the experts


@dataclass(frozen=True, slots=True)
class Origin:
    """What one or more parameters are made of.

    ``sources`` are the stored tensors by the pattern that their names match, in order.
    ``converter`` says what is done with them; None where a tensor is the parameter as it is.
    """

    first: str
    converter: Any
    sources: Mapping[str, tuple[str, ...]]

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return tuple(name for names in self.sources.values() for name in names)

    @property
    def stacks_rows(self) -> bool:
        """Whether an expert's matrix is what is stored of it, one below the other."""
        operations = getattr(self.converter, "operations", ())
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in operations]
        return steps in (_STACKED, [*_STACKED, ("Concatenate", 1)])

    def convert(
        self,
        model: "PreTrainedModel",
        read: Callable[[str], Tensor],
        choose: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda names: names,
    ) -> dict[str, Tensor]:
        """The parameters, by name.

        Args:
            model: which they are for.
            read: gives a stored tensor.
            choose: which of the tensors of a pattern to take.

        """
        if self.converter is None:
            return {self.first: read(self.stored[0])}
        converter = deepcopy(self.converter)
        for pattern, names in self.sources.items():
            for name in choose(names):
                converter.add_tensor(self.first, name, pattern, _Later(read, name))
        made = converter.convert(self.first, model=model, config=model.config)
        return {name: x[0] if isinstance(x, list) else x for name, x in made.items()}


@dataclass(frozen=True, slots=True)
class _Later:
    """A tensor that is read when it is called for."""

    read: Callable[[str], Tensor]
    name: str

    def __call__(self) -> Tensor:
        return self.read(self.name)


def find_origins(
    model: "PreTrainedModel", shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Origin]:
    """What each parameter and stored buffer is made of. Reads nothing.

    This is ``convert_and_load_state_dict_in_model`` of transformers (``core_model_loading.py``)
    without its loading. Tensors that the model has no place for are left out; tied parameters have
    the origin of the one that is stored.

    Args:
        model: an empty one.
        shapes: of the stored tensors, by name.

    Raises:
        CheckpointError: a parameter would have another shape than the model wants.

    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    wanted = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = rename_source_key(name, [], [], prefix, wanted)
        packed = target.removesuffix(BLOCKS).removesuffix(SCALES)
        if target not in wanted and packed in wanted:
            _, sources = found.setdefault(packed, (Packed(), {}))
            sources[target.removeprefix(packed)] = [name]
        elif target in wanted:
            converter = None if pattern is None else by_pattern[pattern]
            _, sources = found.setdefault(target, (converter, {}))
            sources.setdefault(pattern or name, []).append(name)
    origins: dict[str, Origin] = {}
    for first, (converter, lists) in found.items():
        origin = Origin(first, converter, {p: tuple(names) for p, names in lists.items()})
        dtype = getattr(converter, "dtype", torch.float32)
        made = origin.convert(model, partial(_without_values, shapes, dtype))
        for target, values in made.items():
            if target not in wanted:
                continue
            if values.shape != wanted[target].shape:
                raise CheckpointError(
                    f"{quoted(target)} would have the shape {tuple(values.shape)}, but config.json "
                    f"makes it {tuple(wanted[target].shape)}; download the checkpoint again."
                )
            origins[target] = origin
    for target, source in model.all_tied_weights_keys.items():
        if target not in origins and source in origins:
            origins[target] = origins[source]
        elif source not in origins and target in origins:
            origins[source] = origins[target]
    return origins


def _without_values(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, name: str) -> Tensor:
    return torch.empty(shapes[name], dtype=dtype, device="meta")
