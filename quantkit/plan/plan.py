"""The plan of one quant: every tensor, its encoding and its bytes, in the order of the file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller

from quantkit.checkpoint.imatrix import Imatrix, require_same_model
from quantkit.core.errors import CheckpointError, ImatrixError, PlanError
from quantkit.core.tensors import SourceTensor
from quantkit.encodings.encoding import Encoding, encodings
from quantkit.families.model import Model, Target
from quantkit.plan.llama_quantize import (
    QUANTIZED,
    Override,
    assign,
    in_file_order,
    needs_imatrix,
)
from quantkit.plan.quants import Quant

# Buffers that old checkpoints carry and no model needs; the converter skips them too.
_IGNORED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
# What peft calls an adapter's tensors, and what it puts them beside.
_ADAPTER = (".lora_", ".ia3_", ".base_layer.", ".modules_to_save.", "base_model.model.")
_MOST_NAMED = 3
# Formats that ggml computes with and no kernel writes.
_NEVER_STORED = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}

# POSIX's classes inside brackets, as std::regex reads them in the C locale.
_CLASS = re.compile(r"\[:(\w+):\]")
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "d": "0-9",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "s": r"\s",
    "space": r"\s",
    "upper": "A-Z",
    "w": r"\w",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of one artifact. ``n_bytes`` is exact, without padding."""

    target: Target
    encoding: Encoding

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.encoding.row_bytes(self.target.columns)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.row_bytes * self.target.n_rows


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build of one quant will write, and what must be said of it."""

    quant: Quant
    tensors: tuple[PlannedTensor, ...]
    remarks: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors, without padding and header."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight over all tensors."""
        return 8 * self.n_bytes / sum(tensor.target.n_elements for tensor in self.tensors)


def make_plan(
    model: Model,
    quant: Quant,
    imatrix: Imatrix | None = None,
    overrides: Sequence[Override] = (),
) -> Plan:
    """The plan of one quant of one model.

    Raises:
        ImatrixError: the quant needs an importance matrix that is absent or lacks a tensor, or it
            is of another model.
        PlanError: an override matches no tensor.

    """
    plan = outline_plan(model, quant, imatrix is not None, overrides)
    for tensor in plan.tensors:
        if not tensor.encoding.is_block:
            continue
        columns = None if imatrix is None else imatrix.columns_of(tensor.target)
        if columns is None and needs_imatrix(tensor.target, tensor.encoding, quant):
            raise ImatrixError(_why_imatrix(tensor, quant, imatrix))
    if imatrix is None:
        return plan
    wanted = [tensor.target for tensor in plan.tensors if tensor.encoding.is_block]
    remark = require_same_model(imatrix, model.targets, wanted)
    return replace(plan, remarks=(remark,)) if remark else plan


def outline_plan(
    model: Model, quant: Quant, has_imatrix: bool, overrides: Sequence[Override] = ()
) -> Plan:
    """The plan as it would be with or without an importance matrix, which is not looked at.

    Raises:
        PlanError: an override matches no tensor, or none that it could change.

    """
    targets = in_file_order(model.targets)
    for number, override in enumerate(overrides):
        matched = [target for target in targets if override.pattern.search(target.name)]
        if not matched:
            raise PlanError(
                f"--tensor-type {override.pattern.pattern!r} matches no tensor; "
                "quantkit build --dry-run lists their names."
            )
        earlier = [before.pattern for before in overrides[:number]]
        if not any(
            target.role in QUANTIZED and not any(map(methodcaller("search", target.name), earlier))
            for target in matched
        ):
            raise PlanError(
                f"--tensor-type {override.pattern.pattern!r} changes nothing: what it matches "
                f"({matched[0].name} ...) stays in F32 or is taken by an earlier one; leave it out."
            )
    chosen = assign(targets, model.hparams, quant, has_imatrix, overrides)
    return Plan(quant, tuple(map(PlannedTensor, targets, chosen)))


def parse_override(text: str) -> Override:
    """An override from ``PATTERN=TYPE``, such as ``attn_v=q8_0`` or ``blk.0.ffn_.*=q6_k``.

    As in llama-quantize, the pattern is lowered and searched for anywhere in the name.

    Raises:
        PlanError: it has not that form, or names no encoding for weights.

    """
    pattern, equals, kind = text.rpartition("=")
    chosen = encodings().get(kind.upper())
    if not equals or not pattern or chosen is None or chosen.name in _NEVER_STORED:
        raise PlanError(f"--tensor-type {text!r} must be PATTERN=TYPE, for example attn_v=q8_0.")
    try:
        return Override(re.compile(_with_classes(pattern.lower())), chosen)
    except re.error as error:
        raise PlanError(f"--tensor-type {pattern!r} is no regular expression: {error}.") from None


def _with_classes(pattern: str) -> str:
    """A pattern whose ``[[:digit:]]`` and the like, which llama-quantize knows, are spelled out."""
    return _CLASS.sub(lambda match: _CLASSES.get(match[1], match[0]), pattern)


def check_sources(model: Model, tensors: Mapping[str, SourceTensor]) -> None:
    """Check that a checkpoint holds exactly what its config promises.

    Raises:
        CheckpointError: a tensor is missing, not expected, or of another shape.

    """
    adapter = [n for n in tensors if any(part in n for part in _ADAPTER)]
    if adapter:
        raise CheckpointError(
            f"The checkpoint holds {_some(adapter)}, of an adapter (LoRA) that is not merged into "
            "its weights; merge it with peft's merge_and_unload, save that with save_pretrained, "
            "and give that folder."
        )
    missing = [name for name in model.sources if name not in tensors]
    if missing == ["lm_head.weight"]:
        raise CheckpointError(
            "The checkpoint lacks lm_head.weight, and config.json does not say that it is tied; if "
            'the model uses its embedding as output, set "tie_word_embeddings": true in '
            "config.json, else save it with AutoModelForCausalLM or download it again."
        )
    if missing:
        raise CheckpointError(
            f"The checkpoint lacks {_some(missing)}; download it again, or correct config.json."
        )
    extra = [n for n in tensors if n not in model.sources and not n.endswith(_IGNORED)]
    if extra:
        raise CheckpointError(
            f"The checkpoint holds {_some(extra)}, which a {model.family} model does not have; "
            "check that config.json belongs to these weights."
        )
    wrong = [name for name, shape in model.sources.items() if tensors[name].shape != shape]
    _check_vocabulary(model, tensors, wrong)
    for name, shape in model.sources.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{name} in {tensors[name].file} has shape {_shape(tensors[name].shape)}, but "
                f"config.json asks for {_shape(shape)}; they are of different models."
            )


def _check_vocabulary(
    model: Model, tensors: Mapping[str, SourceTensor], wrong: Sequence[str]
) -> None:
    """Say so where nothing but the number of tokens is another: rows were added or padded."""
    tables = {"model.embed_tokens.weight", "lm_head.weight"}.intersection(model.sources)
    shapes = {tensors[name].shape for name in tables}
    if set(wrong) != tables or len(shapes) != 1:
        return
    (shape,) = shapes
    if len(shape) == 2 and shape[1] == model.hparams.hidden_size:
        raise CheckpointError(
            f"config.json says vocab_size = {model.hparams.vocab_size}, but the embedding has "
            f"{shape[0]} rows; if tokens were added or padded, set vocab_size to {shape[0]} in "
            "config.json."
        )


def _why_imatrix(tensor: PlannedTensor, quant: Quant, imatrix: Imatrix | None) -> str:
    name = tensor.target.name
    if imatrix is not None:
        return (
            f"{imatrix.path} has no entry for {name}, which {quant.name} stores as "
            f"{tensor.encoding.name}; make the importance matrix from more text."
        )
    return (
        f"{quant.name} needs an importance matrix: without one {name} as {tensor.encoding.name} "
        "would be garbage. Make one with llama-imatrix and pass it with --imatrix FILE, or "
        "choose q2_k or larger."
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more tensors" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
