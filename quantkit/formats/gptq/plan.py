"""Which weights of a model GPTQ quantizes, and the folder that comes of it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import PlanError
from quantkit.core.tensors import TORCH_NAMES, Bytes
from quantkit.encodings.encoding import Encoding
from quantkit.families.model import Decoder, Model, Target
from quantkit.families.published import published_names
from quantkit.formats.floats import Plain, model_dtype
from quantkit.formats.folder import (
    Codec,
    FolderLayout,
    FolderPlan,
    Part,
    StoredMatrix,
    StoredTarget,
    carried_files,
    lay_out_folder,
)
from quantkit.formats.gptq.stored import Skipped, fits, packed_shapes, quantize_config
from quantkit.formats.safetensors import StoredTensor
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.quants import Quant

if TYPE_CHECKING:
    from quantkit.checkpoint.checkpoint import Checkpoint

_PREFIX = "gptq-int"
_WEIGHT = ".weight"
_NUMBERED = re.compile(r"\.\d+\.")
_GROUP_SIZES = (32, 64, 128)  # that kernels know; -1, whole rows, is another


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """What a user can choose; ``scale_search`` tries narrower ranges, too."""

    group_size: int = 128
    act_order: bool = True
    symmetric: bool = True
    damp: float = 0.01
    scale_search: bool = True


@dataclass(frozen=True, slots=True)
class Packing:
    """A linear layer as four tensors, which are written when the whole matrix is quantized."""

    bits: int
    group_size: int

    @property
    def encoding(self) -> Encoding:
        """Its name in plans."""
        return Encoding(f"{_PREFIX}{self.bits}", -1, 1, 0)

    def parts(self, name: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The tensors that stand for ``MODULE.weight``, (out, in)."""
        module = name.removesuffix("weight")
        shapes = packed_shapes(shape, self.bits, self.group_size)
        return tuple(
            Part(StoredTensor(module + part, dtype, size)) for part, (dtype, size) in shapes.items()
        )

    def encode(self, raw: Bytes, dtype: str, columns: int) -> list[Bytes]:
        """Nothing comes of a slab."""
        del raw, dtype, columns
        return []

    def complete(
        self, name: str, shape: tuple[int, ...], scratch: Mapping[str, Bytes]
    ) -> dict[str, Bytes]:
        """Nothing comes of slabs."""
        del name, shape, scratch
        return {}


def bits_of(quant: Quant) -> int:
    """Bits per level of ``gptq-intN``."""
    return int(quant.name.removeprefix(_PREFIX))


def outline_gptq(
    model: Model, quant: Quant, options: GptqOptions, dtypes: Mapping[str, str]
) -> FolderPlan:
    """Every tensor of one quant of one model.

    Args:
        model: of any family, whose matrices must all fit into the format, or as transformers shows
            it: then those that do not stay as they are.
        quant: ``gptq-intN``.
        options: of the user.
        dtypes: of the checkpoint's tensors, by their names there; BF16 where one is not listed.

    Raises:
        PlanError: a matrix cannot be stored in such groups.

    """
    size = options.group_size
    tensors = []
    for target in in_file_order(model.targets):
        matrices = []
        for block, name in zip(target.blocks, published_names(target), strict=True):
            shape = target.shape[-2:] if target.is_linear else model.sources[block.source]
            codec: Codec = Plain(dtypes.get(block.source, "BF16"))
            if target.is_linear and (isinstance(model, Decoder) or fits(shape, size)):
                if not fits(shape, size):
                    raise PlanError(_why_not(model, name, shape, size))
                codec = Packing(bits_of(quant), size)
            matrices.append(StoredMatrix(name, shape, codec, codec.parts(name, shape)))
        encoding = matrices[0].codec.encoding if matrices else Plain("F32").encoding
        tensors.append(StoredTarget(target, encoding, tuple(matrices)))
    if not any(is_packed(stored) for stored in tensors):
        raise PlanError(_none_fits(model, size))
    return FolderPlan(quant, tuple(tensors))


def is_packed(stored: StoredTarget) -> bool:
    """Whether a target's matrices are quantized."""
    return any(isinstance(matrix.codec, Packing) for matrix in stored.matrices)


def group_sizes(model: Model) -> tuple[int, ...]:
    """The usual group sizes in which every linear layer can be stored, smallest first."""
    shapes = [target.shape[-2:] for target in model.targets if target.is_linear]
    return tuple(size for size in _GROUP_SIZES if all(fits(shape, size) for shape in shapes))


def lay_out_gptq(
    checkpoint: "Checkpoint",
    model: Model,
    quant: Quant,
    options: GptqOptions,
    base_name: str,
    shard_size: int | None = None,
) -> FolderLayout:
    """The folder of one quant of a checkpoint.

    Raises:
        PlanError: a matrix cannot be stored in such groups, or is larger than a shard, or the
            damping is not a share of something.

    """
    bits, size = bits_of(quant), options.group_size
    # Its readers refuse a folder whose damping is 0 or 1.
    if not 0 < options.damp < 1:
        raise PlanError(f"--damp {options.damp:g} is not a share of the diagonal; try 0.01.")
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    plan = outline_gptq(model, quant, options, dtypes)
    kept = [m.name for t in plan.tensors for m in t.matrices if isinstance(m.codec, Plain)]
    settings = quantize_config(
        bits, size, options.damp, options.act_order, options.symmetric, _skipped(model, plan)
    )
    config: dict[str, Any] = {
        key: value
        for key, value in checkpoint.config.items()
        if key not in ("dtype", "torch_dtype")
    }
    # The name that every version of transformers knows.
    dtype = TORCH_NAMES[model_dtype(checkpoint.config, checkpoint.tensors)]
    config |= {"torch_dtype": dtype, "quantization_config": settings}
    files = {
        "config.json": _json(config),
        "quantize_config.json": _json(settings),
        **carried_files(checkpoint.path),
    }
    record = {
        "quantization_config": settings,
        "unquantized": kept,
        "experts": model.facts.n_experts,
    }
    return lay_out_folder(plan, f"{base_name}-{quant.name}", files, record, shard_size)


def _skipped(model: Model, plan: FolderPlan) -> Skipped | None:
    """What readers must be told of linear layers that are not quantized; None where all are.

    Ends of paths that are quantized in one layer and not in another are given in full.
    """
    linear = [stored for stored in plan.tensors if stored.target.is_linear]
    misfits = [stored.target for stored in linear if not is_packed(stored)]
    if not misfits and not model.unquantized:
        return None
    alone = [stored.target for stored in linear if len(stored.target.shape) == 2]
    packed = [target for target in alone if target not in misfits]
    ends = {_end(target) for target in misfits} & {_end(target) for target in packed}

    def named(target: Target) -> str:
        end = _end(target)
        return target.published[0].removesuffix(_WEIGHT) if end in ends else end

    unquantized = (*model.unquantized, *map(named, misfits))
    return Skipped(tuple(dict.fromkeys(unquantized)), tuple(dict.fromkeys(map(named, packed))))


def _end(target: Target) -> str:
    """The path of a linear layer within a decoder layer: ``self_attn.q_proj``."""
    name = target.published[0].removesuffix(_WEIGHT)
    return _NUMBERED.split(name, maxsplit=1)[-1] if len(target.shape) == 2 else _ends_of(name)


def _ends_of(name: str) -> str:
    """What all experts' matrices of a kind have in common: ``down_proj``."""
    return name.rpartition(".")[2]


def _none_fits(model: Model, size: int) -> str:
    sizes = " or ".join(map(str, reversed(_some_fit(model))))
    fix = f"give --group-size {sizes}, or -1 for whole rows" if sizes else "build GGUF quants of it"
    return f"--group-size {size} divides the columns of no linear layer of the model; {fix}."


def _some_fit(model: Model) -> tuple[int, ...]:
    """The usual group sizes in which some linear layer can be stored, smallest first."""
    shapes = [target.shape[-2:] for target in model.targets if target.is_linear]
    return tuple(size for size in _GROUP_SIZES if any(fits(shape, size) for shape in shapes))


def _why_not(model: Model, name: str, shape: tuple[int, ...], size: int) -> str:
    sizes = " or ".join(map(str, reversed(group_sizes(model))))
    if not sizes:
        odd = next(t for t in model.targets if t.is_linear and not fits(t.shape[-2:], -1))
        rows, columns = odd.shape[-2:]
        return (
            f"{published_names(odd)[0]} is {rows} x {columns}, and the GPTQ format stores "
            "multiples of 32 only; this model cannot be stored in it."
        )
    usual = ", the default," if size == GptqOptions().group_size else ""
    return (
        f"--group-size {size}{usual} does not divide the {shape[-1]} columns of {name}; give "
        f"--group-size {sizes}, or -1 for whole rows."
    )


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
