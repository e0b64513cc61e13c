"""The empty model of a config.json: transformers' own class, with no weights in it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantkit.core.errors import CalibrationError
from quantkit.core.printable import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OLDEST = 5
# What would choose code of the model's or of the Hub's, or a stored form that was undone already.
_NOT_OURS = frozenset(
    {
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
        "quantization_config",
    }
)


def require_transformers() -> None:
    """Refuse a transformers that does not say how stored names become parameters.

    Raises:
        CalibrationError: it is one, of before 5.

    """
    import transformers

    if int(transformers.__version__.partition(".")[0]) < _OLDEST:
        raise CalibrationError(
            f"The installed transformers {transformers.__version__} is too old to run models "
            f"layer by layer; pip install 'transformers>={_OLDEST}'."
        )


def empty_model(config: Mapping[str, Any], device: torch.device) -> "PreTrainedModel":
    """The model that a config.json describes: parameters on the meta device, buffers computed.

    It is transformers' class for the ``model_type``; code that came with a checkpoint is never
    looked at. A model whose text part is wrapped comes with its wrapper, and is run on text alone.

    Args:
        config: of a checkpoint.
        device: for the buffers.

    Raises:
        CalibrationError: transformers has no such model, or cannot make one of these numbers.

    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, initialization
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind == "mistral" and "layer_types" in config:
        kind = "ministral"  # as transformers' AutoConfig has it
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CalibrationError(
            f"The installed transformers has no model of the type {quoted(str(kind))}, and code "
            "that comes with a checkpoint is not run; install a newer transformers."
        )
    try:
        made = CONFIG_MAPPING[kind]
        known = made.from_dict(made._decode_special_floats(_without_code(config)))
        auto = next(
            (
                auto
                for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
                if type(known) in auto._model_mapping
            ),
            None,
        )
        if auto is not None:
            with torch.device("meta"), initialization.meta_device_safe_creation_ops():
                model: PreTrainedModel = auto.from_config(
                    known,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    experts_implementation="eager",
                )
    except Exception as error:
        raise CalibrationError(
            f"transformers makes no model of this config.json: {error}; correct it."
        ) from error
    if auto is None:
        raise CalibrationError(
            f"A model of the type {quoted(kind)} does not predict text token by token, according "
            "to the installed transformers."
        )
    _compute_buffers(model, device)
    return model.eval()


def _without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those inside it, without what `_NOT_OURS` names."""
    return {
        key: _without_code(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NOT_OURS
    }


def _compute_buffers(model: "PreTrainedModel", device: torch.device) -> None:
    """Give the buffers that no checkpoint stores their values, as ``from_pretrained`` does."""
    for name, buffer in list(model.named_non_persistent_buffers()):
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        module.register_buffer(key, torch.empty_like(buffer, device=device), persistent=False)
    model.initialize_weights()  # of parameters, nothing: they are on the meta device


def decoder_layers(model: "PreTrainedModel") -> dict[str, nn.Module]:
    """The layers of the text part by name, in their order.

    Raises:
        CalibrationError: they cannot be told.

    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    decoder = model.get_decoder()
    found: dict[str, nn.Module] = {}
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    for name, module in decoder.named_modules(prefix=prefix):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, GradientCheckpointingLayer) and not inside:
            found[name] = module
    if not found:
        raise CalibrationError(
            f"The layers of {type(model).__name__} cannot be found; quantkit cannot stream it."
        )
    return found
