"""A checkpoint of any decoder under its own names: which tensors are matrices of linear layers.

That is for the formats that transformers loads. transformers' class says what is a linear layer or
an expert's matrix, and its conversion mapping from which tensors it is made.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from quantkit.calibration.lockstep.forward import LockstepForward
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.origins import Origin
from quantkit.core.errors import PlanError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES, SourceTensor
from quantkit.families.model import Block, Facts, Model, Target

_WEIGHT = ".weight"
_ROWS = 32  # of which kernels for CPUs want multiples; gates of shared experts have one
_NUMBER = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def publish_model(forward: LockstepForward, checkpoint: Checkpoint) -> Model:
    """The model as its checkpoint names it, with a target per linear layer and layer's experts.

    What transformers' class has no place for (layers that predict further tokens, for example)
    stays as it is, like everything outside the decoder's layers; constants of other types than
    floats are left out.

    Args:
        forward: of the checkpoint.
        checkpoint: with its tensors as they are stored.

    Raises:
        PlanError: there is no linear layer, or experts are stored as quantkit does not take apart,
            or a tensor is of a type that no folder holds.

    """
    finder = _Finder(forward, checkpoint)
    linear = [target for parameter in sorted(forward.linears) for target in finder.of(parameter)]
    if not linear:
        raise PlanError(
            f"Nothing in {checkpoint.repo or checkpoint.path} is a linear layer of transformers' "
            "within a decoder layer, so nothing would be quantized; build GGUF quants of it."
        )
    taken = {block.source for target in linear for block in target.blocks}
    for name in taken:
        _require_floats(checkpoint.tensors[name])
    used = {name for origin in forward.parameters.origins.values() for name in origin.stored}
    kept = [
        _kept(tensor)
        for tensor in checkpoint.tensors.values()
        if tensor.name not in taken and (tensor.dtype in FLOAT_BYTES or tensor.name in used)
    ]
    kind = str(checkpoint.config.get("model_type"))
    experts = max((some.count for some in forward.experts.values()), default=0)
    return Model(
        family=kind,
        arch=kind,
        sources={
            block.source: checkpoint.tensors[block.source].shape
            for target in (*linear, *kept)
            for block in target.blocks
        },
        targets=(*linear, *kept),
        facts=Facts(len(forward.layers), experts),
        keys=(),
        unquantized=_unquantized(forward, finder.found),
    )


def _unquantized(forward: LockstepForward, quantized: Collection[str]) -> tuple[str, ...]:
    """The linear layers that are left alone, lm_head aside, as readers' lists name them.

    A name is the last part of a module's path where no quantized one ends like it, else the path.
    """
    others = (
        name
        for name, module in forward.modules.items()
        if isinstance(module, nn.Linear) and name not in quantized
    )
    last = {name: end for name in others if (end := name.rpartition(".")[2]) != "lm_head"}
    told = {end for end in last.values() if not any(name.endswith(end) for name in quantized)}
    return tuple(dict.fromkeys(end if end in told else name for name, end in last.items()))


@dataclass(slots=True)
class _Finder:
    """Finds the targets of parameters; ``found`` are the linear layers that have one."""

    forward: LockstepForward
    checkpoint: Checkpoint
    found: set[str]

    def __init__(self, forward: LockstepForward, checkpoint: Checkpoint) -> None:
        self.forward = forward
        self.checkpoint = checkpoint
        self.found = set()

    def of(self, parameter: str) -> Iterator[Target]:
        """The targets of a linear layer or of experts; none of a layer that is made of others."""
        forward = self.forward
        origin = forward.parameters.origins.get(parameter)
        if origin is None:  # packed blocks
            raise _not_apart(parameter)
        shape = forward.parameters.shape(parameter)
        count = forward.n_matrices(parameter)
        if len(shape) == 2 and count == 1:
            name = origin.stored[0]
            is_whole = origin.converter is None and origin.first == parameter
            if is_whole and name.endswith(_WEIGHT) and not shape[0] % _ROWS:
                self.found.add(parameter.removesuffix(_WEIGHT))
                yield self._target(parameter, (name,), (Block(name, 0, shape[0]),), shape)
            return
        if origin.stacks_rows and all(len(names) == count for names in origin.sources.values()):
            yield from self._stored_apart(parameter, origin)
            return
        split = self._stored_together(parameter, origin, shape)
        if split is None:
            raise _not_apart(origin.stored[0])
        yield from split

    def _stored_apart(self, parameter: str, origin: Origin) -> Iterator[Target]:
        for names in origin.sources.values():
            rows, columns = self.checkpoint.tensors[names[0]].shape
            blocks = tuple(Block(name, 0, rows) for name in names)
            yield self._target(parameter, names, blocks, (len(names), rows, columns))

    def _stored_together(
        self, parameter: str, origin: Origin, shape: tuple[int, ...]
    ) -> list[Target] | None:
        """Experts in one tensor, each under the name that readers give it.

        None where their matrices are transposed, or lie in each other.
        """
        path, _, own = parameter.rpartition(".")
        module: Any = self.forward.modules.get(path)
        if (
            len(shape) != 3
            or getattr(module, "is_transposed", True)
            or origin.converter is not None
        ):
            return None
        if module.has_bias or not module.is_concatenated:
            return None
        (stored,) = origin.stored
        if self.checkpoint.tensors[stored].shape != shape:
            return None
        count, rows, columns = shape
        names = ("gate_proj", "up_proj") if own == "gate_up_proj" else (own,)
        each = rows // len(names)
        targets = []
        for number, name in enumerate(names):
            blocks = tuple(Block(stored, number * each, each, expert) for expert in range(count))
            published = tuple(f"{path}.{expert}.{name}{_WEIGHT}" for expert in range(count))
            targets.append(self._target(parameter, published, blocks, (count, each, columns)))
        return targets

    def _target(
        self,
        parameter: str,
        published: tuple[str, ...],
        blocks: tuple[Block, ...],
        shape: tuple[int, ...],
    ) -> Target:
        layers = self.forward.layers
        layer = next(n for n, name in enumerate(layers) if parameter.startswith(f"{name}."))
        common = published[0] if len(shape) == 2 else _NUMBER.sub("*", published[0])
        role = common.removesuffix(_WEIGHT)
        if len(shape) > 2:
            role += "_exps"
        return Target(common, role, shape, layer, blocks, published=published, linear=True)


def _not_apart(name: str) -> PlanError:
    return PlanError(
        f"{quoted(name)} holds experts in a form that quantkit does not take apart, such as "
        "transposed ones: transformers 5 has no linear layers for them and leaves them in 16 bits "
        "whatever a folder holds; build GGUF quants of the model."
    )


def _require_floats(tensor: SourceTensor) -> None:
    if tensor.dtype not in FLOAT_BYTES:
        raise PlanError(
            f"{quoted(tensor.name)} is stored as {tensor.dtype}, of which quantkit makes no quants "
            "for transformers; give the checkpoint that it was made from, or build GGUF quants."
        )


def _kept(tensor: SourceTensor) -> Target:
    _require_floats(tensor)
    rows = prod(tensor.shape[:-1])
    shape = (rows, tensor.shape[-1]) if len(tensor.shape) > 1 else tensor.shape or (1,)
    role = tensor.name.removesuffix(_WEIGHT)
    blocks = (Block(tensor.name, 0, rows),)
    return Target(tensor.name, role, shape, None, blocks, published=(tensor.name,), linear=False)
