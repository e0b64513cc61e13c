"""Which weights of a model bitsandbytes quantizes, and the folder that comes of it."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantkit.core.errors import PlanError
from quantkit.core.tensors import TORCH_NAMES
from quantkit.families.model import Decoder, Model, Target
from quantkit.families.published import published_names
from quantkit.formats.bnb.codec import (
    BLOCK_SIZES,
    BnbOptions,
    EightBit,
    FourBit,
    one_thread,
    require_bitsandbytes,
)
from quantkit.formats.bnb.readme import write_readme
from quantkit.formats.floats import Plain, model_dtype
from quantkit.formats.folder import (
    Codec,
    FolderLayout,
    FolderPlan,
    StoredMatrix,
    StoredTarget,
    carried_files,
    lay_out_folder,
)
from quantkit.planning.llama_quantize import in_file_order
from quantkit.planning.quants import Quant

if TYPE_CHECKING:
    from quantkit.checkpoint.checkpoint import Checkpoint

_INT8 = "bnb-int8"


def outline_bnb(
    model: Model,
    quant: Quant,
    options: BnbOptions,
    dtype: str = "BF16",
    stored: Mapping[str, str] | None = None,
) -> FolderPlan:
    """Every tensor of one quant of one model.

    Args:
        model: of any family, or as transformers shows it.
        quant: ``bnb-nf4``, ``bnb-fp4`` or ``bnb-int8``.
        options: of the user.
        dtype: of the model, by safetensors' name.
        stored: the dtypes of tensors that are to keep them where they are not quantized.

    Raises:
        PlanError: there is no such block size, it does not divide the rows, or nothing to keep has
            a name given.

    """
    if options.block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise PlanError(
            f"--block-size {options.block_size} is not a size that bitsandbytes has: {sizes}."
        )
    codec: Codec = EightBit(dtype)
    if quant.name != _INT8:
        kind = quant.name.removeprefix("bnb-")
        codec = FourBit(kind, options.block_size, options.double_quant, dtype)
    used: set[str] = set()
    tensors = []
    for target in in_file_order(model.targets):
        matrices = []
        for block, name in zip(target.blocks, _names(model, target), strict=False):
            module = name.removesuffix(".weight")
            keeps = [k for k in options.keep if _is_named(module, k)] if target.is_linear else []
            used.update(keeps)
            is_quantized = target.is_linear and not keeps
            own = (stored or {}).get(block.source, dtype)
            chosen: Codec = codec if is_quantized else Plain(own)
            if isinstance(chosen, FourBit) and target.columns % options.block_size:
                raise PlanError(
                    f"--block-size {options.block_size} does not divide the {target.columns} "
                    f"columns of {name}, and bitsandbytes gets such rows wrong on CPUs; "
                    f"{_advice(model)}."
                )
            shape = target.shape[-2:] if target.is_linear else model.sources[block.source]
            matrices.append(StoredMatrix(name, shape, chosen, chosen.parts(name, shape)))
        encoding = matrices[0].codec.encoding if matrices else Plain(dtype).encoding
        tensors.append(StoredTarget(target, encoding, tuple(matrices)))
    unknown = [name for name in options.keep if name not in used and name != "lm_head"]
    if unknown:
        raise PlanError(
            f"--keep {unknown[0]} names no module that would be quantized; give the last part of "
            "a module's name, such as o_proj, or the beginning, such as model.layers.0."
        )
    return FolderPlan(quant, tuple(tensors))


def block_sizes(model: Model) -> tuple[int, ...]:
    """The block sizes in which every linear layer's rows can be stored, smallest first."""
    columns = [target.columns for target in model.targets if target.is_linear]
    return tuple(size for size in BLOCK_SIZES if not any(n % size for n in columns))


def lay_out_bnb(
    checkpoint: "Checkpoint",
    model: Model,
    quant: Quant,
    options: BnbOptions,
    base_name: str,
    shard_size: int | None = None,
) -> FolderLayout:
    """The folder of one quant of a checkpoint.

    Raises:
        PlanError: as `outline_bnb` does, or a matrix is larger than a shard.
        MissingPackageError: bitsandbytes is not installed.

    """
    from importlib.metadata import version

    require_bitsandbytes()
    dtype = model_dtype(checkpoint.config, checkpoint.tensors)
    stored = None
    if not isinstance(model, Decoder):
        stored = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    plan = outline_bnb(model, quant, options, dtype, stored)
    quantization = quantization_config(model, quant, options, dtype)
    config = {
        key: value
        for key, value in checkpoint.config.items()
        if key not in ("dtype", "torch_dtype")
    }
    # Versions before 4.56 of transformers know the second name only, and all know it.
    config |= {"torch_dtype": TORCH_NAMES[dtype], "quantization_config": quantization}
    name = f"{base_name}-{quant.name}"
    files = {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        **carried_files(checkpoint.path),
        "README.md": write_readme(name, model, quant, options).encode(),
    }
    unquantized = [m.name for t in plan.tensors for m in t.matrices if isinstance(m.codec, Plain)]
    record = {
        "tools": {name: version(name) for name in ("bitsandbytes", "torch")},
        "quantization_config": quantization,
        "unquantized": unquantized,
        "experts": model.facts.n_experts,
    }
    return lay_out_folder(plan, name, files, record, shard_size, one_thread)


def _advice(model: Model) -> str:
    found = " or ".join(map(str, block_sizes(model)))
    return f"choose {found}, or --keep the module" if found else "--keep the module, or use int8"


def quantization_config(
    model: Model, quant: Quant, options: BnbOptions, dtype: str
) -> dict[str, Any]:
    """What config.json says of the quantization: ``BitsAndBytesConfig`` of transformers."""
    eight = quant.name == _INT8
    # Older versions hold the router in a linear module, which they would quantize. Where the list
    # is not given, every version leaves out lm_head by itself.
    skipped = ["gate"] if isinstance(model, Decoder) and model.facts.n_experts else []
    skipped += [*model.unquantized, *options.keep]
    skipped = list(dict.fromkeys(["lm_head", *skipped])) if skipped else []
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": not eight,
        "load_in_8bit": eight,
        "_load_in_4bit": not eight,
        "_load_in_8bit": eight,
        "bnb_4bit_compute_dtype": "float32" if eight else TORCH_NAMES[dtype],
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4" if eight else quant.name.removeprefix("bnb-"),
        "bnb_4bit_use_double_quant": options.double_quant and not eight,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skipped or None,
        "llm_int8_threshold": 6.0,
    }


def _names(model: Model, target: Target) -> Sequence[str]:
    # transformers ties lm_head to the embeddings then, whatever a file holds.
    ties = isinstance(model, Decoder) and model.hparams.tie_word_embeddings
    return () if target.role == "output" and ties else published_names(target)


def _is_named(module: str, name: str) -> bool:
    """Whether a name is a module's last part, or its path or the beginning of it.

    These are the ways that every version of transformers understands.
    """
    return module.rpartition(".")[2] == name or f"{module}.".startswith(f"{name}.")
