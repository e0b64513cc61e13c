"""Load an artifact into transformers with its experts quantized, without the 16-bit model.

Dense models, and mixtures of experts in transformers 4, load with plain ``from_pretrained``.
transformers 5 fuses the experts of a layer into one parameter that its bitsandbytes integration
leaves alone; there `quantkit.formats.loading` puts layers of bitsandbytes in their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import open_quantized
from quantkit.core.errors import CheckpointError, MissingPackageError, PlanError
from quantkit.core.packages import why_missing
from quantkit.formats.bnb.codec import require_bitsandbytes
from quantkit.formats.bnb.reader import FourBitState, read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quantkit.formats.loading import DeviceMap

_FUSED_SINCE = 5  # transformers' major version
_FOUR_BIT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def load(folder: str | Path, *, device_map: "DeviceMap" = None, **options: Any) -> Any:
    """The model in a folder of bitsandbytes weights, ready to generate, as transformers has it.

    Args:
        folder: of an artifact, on disk.
        device_map: as in transformers: ``auto``, a device, or devices by module name; None for
            the CPU, or the first GPU where there is one.
        options: given to ``from_pretrained`` where that loads the model; ``dtype`` is settled by
            the artifact.

    Raises:
        CheckpointError: the folder is incomplete, damaged, or not bitsandbytes'.
        MissingPackageError: bitsandbytes, torch, transformers or accelerate is not installed.
        PlanError: an option is not known here, or a device map that puts modules on the disk.

    """
    require_bitsandbytes()
    try:
        import accelerate  # noqa: F401 - transformers wants it for everything quantized
        import transformers
    except ImportError as error:
        raise MissingPackageError(why_missing(str(error.name), "bnb", "Loading")) from None
    from quantkit.formats.loading import class_for, load_model

    stored = open_quantized(Path(folder))
    if stored.config["quantization_config"].get("quant_method") != "bitsandbytes":
        raise CheckpointError(f"{folder} is not a bitsandbytes folder; load it with transformers.")
    has_experts = any(".experts." in name for name in stored.tensors)
    if not has_experts or int(transformers.__version__.split(".")[0]) < _FUSED_SINCE:
        settings = {"device_map": device_map, "dtype": "auto", **options}
        auto = class_for(transformers.AutoConfig.from_pretrained(str(folder)))
        return auto.from_pretrained(str(folder), **settings)
    if options:
        raise PlanError(f"load does not know {next(iter(options))!r} for a mixture of experts.")
    model = load_model(stored, _scheme(stored), device_map)
    settings = stored.config["quantization_config"]
    model.config.quantization_config = transformers.BitsAndBytesConfig.from_dict(dict(settings))
    return model


def _scheme(stored: Checkpoint) -> "_Bitsandbytes":
    states = {
        name: state
        for name in stored.tensors
        if name.endswith(".weight") and (state := read_state(stored.tensors, name)) is not None
    }
    rows = {
        name: (tensor.shape[0], tensor.shape[1])
        for name, tensor in stored.tensors.items()
        if tensor.dtype == "I8" and f"{name.removesuffix('weight')}SCB" in stored.tensors
    }
    return _Bitsandbytes(stored, states, rows)


@dataclass(frozen=True, slots=True)
class _Bitsandbytes:
    """A `quantkit.formats.loading.Scheme`: 4-bit weights by their states, 8-bit by their shapes."""

    stored: Checkpoint
    states: Mapping[str, FourBitState]
    rows: Mapping[str, tuple[int, int]]

    def weights(self) -> Mapping[str, tuple[int, int]]:
        """The shapes of all."""
        four = {name: (state.shape[0], state.shape[1]) for name, state in self.states.items()}
        return {**four, **self.rows}

    def tensors(self, weight: str) -> Mapping[str, str]:
        """Codes, scales and what belongs to them."""
        if weight in self.rows:
            module = weight.removesuffix("weight")
            found = {"weight": weight, "SCB": f"{module}SCB"}
            number = f"{module}weight_format"
            return found | ({"weight_format": number} if number in self.stored.tensors else {})
        kind = f"quant_state.bitsandbytes__{self.states[weight].kind}"
        parts = (part for part in (*_FOUR_BIT, kind) if f"{weight}.{part}" in self.stored.tensors)
        return {"weight": weight} | {part: f"{weight}.{part}" for part in parts}

    def layer(self, weight: str, dtype: "torch.dtype") -> "nn.Module":
        """A layer with parameters of the stored shapes."""
        import torch
        from bitsandbytes import nn

        shape = self.stored.tensors[weight].shape
        if weight in self.rows:
            rows, columns = self.rows[weight]
            threshold = self.stored.config["quantization_config"].get("llm_int8_threshold", 6.0)
            eight = nn.Linear8bitLt(columns, rows, False, False, threshold, device="meta")
            codes = torch.empty(shape, dtype=torch.int8, device="meta")
            eight.weight = nn.Int8Params(codes, requires_grad=False)
            return eight
        state = self.states[weight]
        rows, columns = state.shape
        nested = bool(state.nested_block)
        layer = nn.Linear4bit(columns, rows, False, dtype, nested, state.kind, device="meta")
        codes = torch.empty(shape, dtype=torch.uint8, device="meta")
        layer.weight = nn.Params4bit(codes, requires_grad=False, quant_type=state.kind)
        return layer

    def put(self, layer: Any, tensors: "Mapping[str, torch.Tensor]", device: Any) -> None:
        """Codes and quant state into a layer."""
        from bitsandbytes import nn

        rest = dict(tensors)
        weight = rest.pop("weight")
        if isinstance(layer, nn.Linear4bit):
            layer.weight = nn.Params4bit.from_prequantized(
                weight, rest, requires_grad=False, device=device, module=layer
            )
            layer.quant_state = layer.weight.quant_state
        else:
            layer.weight = nn.Int8Params(
                weight, requires_grad=False, has_fp16_weights=False, CB=weight, SCB=rest["SCB"]
            )
