"""Load a quantized folder into transformers' own class, with its experts quantized.

transformers 5 keeps the experts of a layer in one parameter, which the readers of quantized formats
leave in 16 bits, or fill with random numbers. Here every matrix that is stored quantized gets a
layer of its own in the place where the class multiplies by it: of an expert it is a module beneath
the class's module of experts, whose forward then goes through those that a token is routed to.
Which tensors a parameter is made of is what transformers' conversion mapping says. One tensor at a
time is read straight to its device, and the 16-bit model is never there.
"""

import re
import types
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.origins import Origin, find_origins
from quantkit.core.errors import CheckpointError, PlanError
from quantkit.core.printable import quoted
from quantkit.core.tensors import TORCH_NAMES
from quantkit.formats.floats import model_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DeviceMap: TypeAlias = "str | int | dict[str, Any] | torch.device | None"
_WEIGHT = ".weight"
_DOWN = "down_proj"
# Experts that were stored together and are stored apart now, under the path of their module.
_SPLIT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


class Scheme(Protocol):
    """How a format stores a matrix, and the layer that multiplies by it."""

    def weights(self) -> Mapping[str, tuple[int, int]]:
        """The quantized matrices by the name ``MODULE.weight``: their rows and columns."""

    def tensors(self, weight: str) -> Mapping[str, str]:
        """The stored tensors of one, by what the format calls them."""

    def layer(self, weight: str, dtype: torch.dtype) -> nn.Module:
        """A layer without bias for one, with nothing in it yet."""

    def put(self, layer: nn.Module, tensors: Mapping[str, Tensor], device: Any) -> None:
        """Give a layer its tensors, which are on the device."""


def load_model(stored: Checkpoint, scheme: Scheme, device_map: DeviceMap) -> Any:
    """The model in a folder, in evaluation mode, as transformers has it.

    Args:
        stored: the folder.
        scheme: of the format.
        device_map: ``auto``, a device, or devices by module name; None for the CPU, or the first
            GPU where there is one.

    Raises:
        CheckpointError: it lacks a tensor, or has one of another shape or for no place.
        PlanError: the device map puts modules on the disk, or leaves some out.

    """
    import accelerate
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(stored.path), trust_remote_code=False)
    del config.quantization_config
    dtype = getattr(torch, TORCH_NAMES[model_dtype(stored.config, stored.tensors)])
    with accelerate.init_empty_weights(include_buffers=False):
        model = class_for(config).from_config(config, dtype=dtype, trust_remote_code=False)
        plan = _plan(model, stored, scheme)
        for path, layer in plan.layers.items():
            _set_layer(model, path, layer)
        for path, experts in plan.experts.items():
            _set_experts(model.get_submodule(path), experts)
    devices = _place(model, device_map)
    with ExitStack() as files:
        read = _Reader(files, stored)
        for path, weight in plan.places.items():
            device = _device(path, devices)
            parts = {key: read(name).to(device) for key, name in scheme.tensors(weight).items()}
            scheme.put(model.get_submodule(path), parts, device)
        _fill(model, plan, read, devices, dtype)
    model.tie_weights()
    if left := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
        raise CheckpointError(f"{stored.path} lacks {left[0]}; build or copy it again.")
    model.is_quantized = True
    if (stored.path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(stored.path))
    model.eval()
    if len(set(devices.values())) > 1:
        return accelerate.dispatch_model(model, devices)
    return model.to(next(iter(devices.values())))


def class_for(config: Any) -> Any:
    """Transformers' automatic class for a model that predicts text, wrapped or not."""
    import transformers

    auto = transformers.AutoModelForCausalLM
    return auto if type(config) in auto._model_mapping else transformers.AutoModelForImageTextToText


@dataclass(frozen=True, slots=True)
class _Experts:
    """The layers of a module of experts, by expert and part, and which parts are for what comes in.

    A part is called as it is stored: ``w1`` or ``gate_proj``.
    """

    into: tuple[str, ...]
    down: str
    layers: Mapping[int, Mapping[str, nn.Module]]


@dataclass(slots=True)
class _Parts:
    """The stored names of experts' matrices, by part and then in the order of the experts."""

    into: dict[str, tuple[str, ...]] = field(default_factory=dict)
    down: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Plan:
    """What goes where.

    ``layers`` and ``experts`` are put in by the paths of modules; ``places`` are the paths of all
    quantized layers with their weights; ``plain`` the origins of what is not quantized, by
    parameter, and ``single`` the stored names of experts' matrices that are not.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    experts: dict[str, _Experts] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    plain: dict[str, Origin] = field(default_factory=dict)
    single: dict[str, str] = field(default_factory=dict)


def _plan(model: "PreTrainedModel", stored: Checkpoint, scheme: Scheme) -> _Plan:
    quantized = scheme.weights()
    owned = {name for weight in quantized for name in scheme.tensors(weight).values()}
    shapes: dict[str, tuple[int, ...]] = {
        name: tensor.shape for name, tensor in stored.tensors.items() if name not in owned
    }
    origins = find_origins(model, {**shapes, **quantized})
    known = {name for origin in origins.values() for name in origin.stored}
    dtype = getattr(torch, TORCH_NAMES[model_dtype(stored.config, stored.tensors)])
    plan = _Plan()
    found = _taken_apart({*shapes, *quantized} - known, model)
    # Where some of a module's experts are quantized, each of its matrices gets a layer.
    apart = {
        parameter.rpartition(".")[0]
        for parameter, origin in origins.items()
        if origin.converter is not None and any(name in quantized for name in origin.stored)
    }
    for parameter, origin in origins.items():
        is_plain = not any(name in quantized for name in origin.stored)
        if is_plain and not (origin.stacks_rows and parameter.rpartition(".")[0] in apart):
            plan.plain[parameter] = origin
        elif origin.converter is None:
            path = parameter.removesuffix(_WEIGHT)
            plan.layers[path] = scheme.layer(origin.stored[0], dtype)
            plan.places[path] = origin.stored[0]
        elif origin.stacks_rows:
            path, _, own = parameter.rpartition(".")
            parts = found.setdefault(path, _Parts())
            into = parts.down if own == _DOWN else parts.into
            into |= {_part(names[0]): names for names in origin.sources.values()}
        else:
            raise CheckpointError(
                f"{stored.path} holds {quoted(origin.stored[0])}, of which this version of "
                "transformers makes a parameter in a way that quantkit does not undo."
            )
    for path, parts in found.items():
        _require_own_arithmetic(model, path, parts, stored)
        layers: dict[int, dict[str, nn.Module]] = {}
        for part, names in {**parts.into, **parts.down}.items():
            for expert, name in enumerate(names):
                at = f"{path}.{expert}.{part}"
                if name in quantized:
                    layer = scheme.layer(name, dtype)
                    plan.places[at] = name
                else:
                    rows, columns = shapes[name]
                    layer = nn.Linear(columns, rows, bias=False, device="meta", dtype=dtype)
                    plan.single[f"{at}{_WEIGHT}"] = name
                layers.setdefault(expert, {})[part] = layer
        (down,) = parts.down
        plan.experts[path] = _Experts(tuple(parts.into), down, layers)
    if missing := sorted(quantized.keys() - plan.places.values()):
        raise CheckpointError(
            f"{stored.path} holds weights of {missing[0].removesuffix(_WEIGHT)}, which this "
            "version of transformers does not have in such a model."
        )
    return plan


def _taken_apart(names: Collection[str], model: nn.Module) -> dict[str, _Parts]:
    """Experts' matrices, by module, that transformers knows in one tensor only."""
    modules = {path for path, _ in model.named_modules()}
    numbered: dict[str, dict[str, dict[int, str]]] = {}
    for name in names:
        match = _SPLIT.fullmatch(name)
        if match is not None and match[1] in modules:
            numbered.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = name
    found = {}
    for path, parts in sorted(numbered.items()):
        ordered = {part: tuple(by[n] for n in sorted(by)) for part, by in sorted(parts.items())}
        down = {_DOWN: ordered.pop(_DOWN, ())}
        found[path] = _Parts(ordered, down)
    return found


def _require_own_arithmetic(model: nn.Module, path: str, parts: _Parts, stored: Checkpoint) -> None:
    """Refuse experts that are not all there, or are not multiplied by as they are stored."""
    module: Any = model.get_submodule(path)
    asks = all(hasattr(module, own) for own in ("has_gate", "has_bias", "is_transposed"))
    if not asks or module.has_bias or module.is_transposed or not module.is_concatenated:
        raise CheckpointError(
            f"{stored.path} holds experts one by one, and {type(module).__name__} of this version "
            "of transformers computes with them in a way that quantkit does not know."
        )
    for part, names in {**parts.into, **parts.down}.items():
        if len(names) != module.num_experts:
            raise CheckpointError(
                f"{stored.path} holds {part} of {len(names)} of the {module.num_experts} experts "
                f"of {path}; build or copy it again."
            )


def _part(name: str) -> str:
    """``...experts.3.w1.weight`` -> ``w1``."""
    return name.removesuffix(_WEIGHT).rpartition(".")[2]


def _set_layer(model: nn.Module, path: str, layer: nn.Module) -> None:
    old: Any = model.get_submodule(path)
    if getattr(old, "bias", None) is not None:
        layer.bias = old.bias
    model.set_submodule(path, layer)


def _set_experts(module: Any, experts: _Experts) -> None:
    """Have a module of experts compute with layers of their own, instead of its parameters."""
    for name in ("gate_up_proj", "up_proj", "down_proj"):
        if name in module._parameters:
            del module._parameters[name]
    for number, parts in experts.layers.items():
        module.add_module(str(number), nn.ModuleDict(dict(parts)))
    module.into_parts, module.down_part = experts.into, experts.down
    module.forward = types.MethodType(_run_experts, module)


def _run_experts(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Hidden states, (tokens, hidden), through the experts that each token is routed to.

    ``index`` and ``weights`` are (tokens, k). The arithmetic is the class's own.
    """
    result = torch.zeros_like(hidden)
    for number in index.unique().tolist():
        parts = module._modules.get(str(number))
        if parts is None:  # one beyond the last stands for none
            continue
        token, slot = torch.where(index == number)
        states = hidden[token]
        made = torch.cat([parts[name](states) for name in module.into_parts], -1)
        inner = module._apply_gate(made) if module.has_gate else module.act_fn(made)
        out = parts[module.down_part](inner)
        if module.has_post_expert_norm:
            out = module.post_expert_norm(out)
        weighted = out * weights[token, slot, None]
        result.index_add_(0, token, weighted.to(result.dtype))
    return result


def _place(model: Any, device_map: DeviceMap) -> dict[str, Any]:
    """A device for each module, named by the beginning of its path."""
    import accelerate

    if device_map is None:
        device_map = 0 if torch.cuda.is_available() else "cpu"
    if device_map == "auto":
        split = getattr(model, "_no_split_modules", None)
        free = accelerate.utils.get_balanced_memory(model, no_split_module_classes=split)
        device_map = accelerate.infer_auto_device_map(
            model, max_memory=free, no_split_module_classes=split
        )
    if not isinstance(device_map, dict):
        device_map = {"": device_map}
    if "disk" in device_map.values():
        raise PlanError(
            "The model does not fit this machine's memory; quantkit fit says what it needs."
        )
    return dict(device_map)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads stored tensors whole; files stay open meanwhile."""

    files: ExitStack
    stored: Checkpoint
    opened: dict[Path, Any] = field(default_factory=dict)

    def __call__(self, name: str) -> Tensor:
        from safetensors import safe_open

        file = self.stored.tensors[name].file
        if file not in self.opened:
            self.opened[file] = self.files.enter_context(safe_open(str(file), framework="pt"))
        tensor: Tensor = self.opened[file].get_tensor(name)
        return tensor


def _fill(
    model: "PreTrainedModel",
    plan: _Plan,
    read: _Reader,
    devices: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Read what is not quantized: parameters in the model's dtype, buffers in their own."""
    wider = model._get_dtype_plan(dtype)
    made_of: dict[int, list[str]] = {}
    for name, origin in plan.plain.items():
        made_of.setdefault(id(origin), []).append(name)
    for names in made_of.values():
        origin = plan.plain[names[0]]
        values = origin.convert(model, read)
        for name in names:
            value = values[name] if name in values else values[origin.first]  # of tied ones
            _put(model, name, value, wider, devices)
    for name, single in plan.single.items():
        _put(model, name, read(single), wider, devices)


def _put(
    model: nn.Module, name: str, value: Tensor, wider: Mapping[str, Any], devices: Mapping[str, Any]
) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    device = _device(path, devices)
    if own in module._buffers:
        old = module._buffers[own]
        assert old is not None  # noqa: S101 - it is in the state dict
        module._buffers[own] = value.to(device, old.dtype)
        return
    kind = next((kind for key, kind in wider.items() if re.search(key, name)), None)
    old = module._parameters[own]
    assert old is not None  # noqa: S101 - it is in the state dict
    value = value.to(device, kind or old.dtype)
    module._parameters[own] = nn.Parameter(value, requires_grad=False)


def _device(path: str, devices: Mapping[str, Any]) -> Any:
    while path not in devices and path:
        path = path.rpartition(".")[0]
    if path not in devices:
        raise PlanError(f"device_map says nothing about {path or 'the model'}; add it.")
    return devices[path]
