"""Whether a checkpoint's tensors are those that its config promises."""

from collections.abc import Mapping, Sequence

from quantkit.core.errors import CheckpointError
from quantkit.core.tensors import SourceTensor
from quantkit.families.model import Decoder

# Buffers that old checkpoints carry and no model needs; the converter skips them too.
_IGNORED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
# What peft calls an adapter's tensors, and what it puts them beside.
_ADAPTER = (".lora_", ".ia3_", ".base_layer.", ".modules_to_save.", "base_model.model.")
_MOST_NAMED = 3


def check_sources(model: Decoder, tensors: Mapping[str, SourceTensor]) -> None:
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
    model: Decoder, tensors: Mapping[str, SourceTensor], wrong: Sequence[str]
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


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more tensors" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
