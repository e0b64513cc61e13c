"""A mixture of experts seen as a dense checkpoint: one matrix where each layer has several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.rows import open_rows, read_stored
from quantkit.core.errors import CheckpointError, PlanError
from quantkit.core.printable import quoted
from quantkit.core.tensors import SourceTensor
from quantkit.encodings.merge import weighted_mean
from quantkit.encodings.widen import widen
from quantkit.families import describe, mixtral
from quantkit.families.model import Block, Decoder

_DENSE_ROLES = {"ffn_gate": "ffn_gate_exps", "ffn_up": "ffn_up_exps", "ffn_down": "ffn_down_exps"}
_OF_EXPERTS = (
    "num_local_experts",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "num_experts",
    "layer_types",  # nobody reads a Mixtral's, but transformers 5 a Mistral's
)


@dataclass(frozen=True, slots=True)
class _Mean:
    """Experts' matrices and their weights; those without weight are left out."""

    blocks: tuple[Block, ...]
    weights: tuple[float, ...]


def densified(
    checkpoint: Checkpoint,
    model: Decoder,
    weights: Sequence[Sequence[float]],
    replaced: Mapping[str, SourceTensor] | None = None,
) -> tuple[Checkpoint, Decoder]:
    """A dense Mistral checkpoint whose feed-forward matrices are means of the experts'.

    Nothing is read before its rows are asked for. A matrix of one expert alone has its bytes, and
    everything else the bytes it has in the source.

    Args:
        checkpoint: of a Mixtral.
        model: the checkpoint's.
        weights: per layer, one per expert.
        replaced: matrices to take from elsewhere, by their names in the dense model.

    Raises:
        CheckpointError: the model has no experts.
        PlanError: there are not as many weights as experts, or they add up to nothing. Rows raise
            it where a mean is beyond the range of its dtype.

    """
    require_experts(checkpoint, model)
    _check_weights(weights, model)
    config = dense_config(checkpoint.config)
    dense = describe(config, checkpoint.tensors)
    experts = {(t.layer, t.role): t.blocks for t in model.targets}
    own_rows = open_rows(checkpoint)
    means: dict[str, _Mean] = {}
    stored = dict(replaced or {})
    tensors: dict[str, SourceTensor] = {}
    for target in dense.targets:
        for block in target.blocks:
            name, shape = block.source, dense.sources[block.source]
            if name in stored:
                tensors[name] = replace(stored[name], name=name)
            elif role := _DENSE_ROLES.get(target.role):
                assert target.layer is not None  # noqa: S101 - these roles are a layer's
                pairs = zip(experts[target.layer, role], weights[target.layer], strict=True)
                mean = [(source, weight) for source, weight in pairs if weight]
                means[name] = _Mean(*zip(*mean, strict=True))
                tensors[name] = _describe(name, shape, mean[0][0], checkpoint.tensors)
            else:
                tensors[name] = checkpoint.tensors[name]

    def read_block(block: Block, first: int, count: int) -> NDArray[np.uint8]:
        start = block.row + first
        if block.matrix is not None:
            start += block.matrix * checkpoint.tensors[block.source].shape[1]
        return own_rows(block.source, start, count)

    def read_rows(name: str, first: int, count: int) -> NDArray[np.uint8]:
        if name in stored:
            return read_stored(stored[name], first, count)
        if name not in means:
            return own_rows(name, first, count)
        mean = means[name]
        raws = [read_block(block, first, count) for block in mean.blocks]
        if len(raws) == 1:
            return raws[0]
        dtype = tensors[name].dtype
        with np.errstate(over="ignore", invalid="ignore"):
            found = weighted_mean(raws, mean.weights, dtype)
        if not _is_finite(found, dtype) and all(_is_finite(raw, dtype) for raw in raws):
            raise PlanError(
                f"The mean of the experts is beyond what {dtype} holds in {quoted(name)}; give "
                "other weights, or take one expert with --expert."
            )
        return found

    return replace(checkpoint, config=config, tensors=tensors, read_rows=read_rows), dense


def _is_finite(raw: NDArray[np.uint8], dtype: str) -> bool:
    return bool(np.isfinite(widen(raw, dtype)).all())


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a Mixtral without its experts, as a Mistral's.

    Where it is silent, the two architectures assume different numbers, so these are written out.
    """
    assumed = {**mixtral.DEFAULTS, "sliding_window": None}
    kept = {key: value for key, value in config.items() if key not in _OF_EXPERTS}
    spoken = {key: value for key, value in assumed.items() if key not in _OF_EXPERTS}
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if rope.get("rope_theta") is not None:
        del spoken["rope_theta"]  # it is in there
    return {
        **spoken,
        **kept,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
    }


def require_experts(checkpoint: Checkpoint, model: Decoder) -> None:
    """Refuse a model that is dense already.

    Raises:
        CheckpointError: it has no experts.

    """
    if not model.hparams.num_local_experts:
        raise CheckpointError(
            f"{checkpoint.path} is dense already: a {model.family} model without experts; give a "
            "Mixtral."
        )


def _check_weights(weights: Sequence[Sequence[float]], model: Decoder) -> None:
    experts = model.hparams.num_local_experts
    for layer in weights:
        if len(layer) != experts:
            raise PlanError(
                f"There are {len(layer)} weights for {experts} experts; give one for each, "
                "separated by commas."
            )
        if not all(np.isfinite(layer)) or not np.isfinite(1 / np.float64(sum(layer) or np.nan)):
            raise PlanError("The weights of the experts must be numbers that do not add up to 0.")


def _describe(
    name: str, shape: tuple[int, ...], block: Block, sources: Mapping[str, SourceTensor]
) -> SourceTensor:
    """A matrix as it will be; it is read where its first expert lies."""
    source = sources[block.source]
    first = block.row + (block.matrix or 0) * (source.shape[1] if block.matrix is not None else 0)
    offset = source.offset + first * source.row_bytes
    return SourceTensor(name, source.dtype, shape, source.file, offset, shape[0] * source.row_bytes)
