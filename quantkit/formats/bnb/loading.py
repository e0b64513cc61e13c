"""Load an artifact into transformers with its experts quantized, without the 16-bit model.

Dense models, and mixtures of experts in transformers 4, load with plain ``from_pretrained``.
transformers 5 fuses the experts of a layer into one parameter that its bitsandbytes integration
leaves alone; there the fused module is replaced by one with a quantized linear layer per expert
and part, of which a token computes only the experts that it is routed to.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import open_quantized
from quantkit.core.errors import CheckpointError, MissingPackageError, PlanError
from quantkit.core.packages import why_missing
from quantkit.core.tensors import SourceTensor
from quantkit.formats.bnb.codec import require_bitsandbytes
from quantkit.formats.bnb.plan import model_dtype
from quantkit.formats.bnb.reader import read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

DeviceMap: TypeAlias = "str | int | dict[str, Any] | torch.device | None"
_PUBLISHED, _IN_MEMORY = ".block_sparse_moe.", ".mlp."
_FUSED_SINCE = 5  # transformers' major version


def load(folder: str | Path, *, device_map: DeviceMap = None, **options: Any) -> Any:
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
    stored = open_quantized(Path(folder))
    if stored.config["quantization_config"].get("quant_method") != "bitsandbytes":
        raise CheckpointError(f"{folder} is not bitsandbytes'; load it with transformers.")
    has_experts = any(".experts." in name for name in stored.tensors)
    if not has_experts or int(transformers.__version__.split(".")[0]) < _FUSED_SINCE:
        settings = {"device_map": device_map, "dtype": "auto", **options}
        return transformers.AutoModelForCausalLM.from_pretrained(str(folder), **settings)
    if options:
        raise PlanError(f"load does not know {next(iter(options))!r} for a mixture of experts.")
    return _load_experts(stored, device_map)


def _load_experts(stored: Checkpoint, device_map: DeviceMap) -> Any:
    """A mixture of experts in a transformers that fuses them."""
    import accelerate
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(stored.path))
    quantization = config.quantization_config
    del config.quantization_config
    dtype = getattr(torch, _torch_name(stored))
    with accelerate.init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        _replace_modules(model, stored, dtype)
    devices = _place(model, device_map)
    _fill(model, stored, devices)
    model.tie_weights()
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if left:
        raise CheckpointError(f"{stored.path} lacks {left[0]}; build or copy it again.")
    config.quantization_config = transformers.BitsAndBytesConfig.from_dict(quantization)
    model.is_quantized = True
    if (stored.path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(stored.path))
    model.eval()
    if len(set(devices.values())) > 1:
        return accelerate.dispatch_model(model, devices)
    return model.to(next(iter(devices.values())))


def _torch_name(stored: Checkpoint) -> str:
    from quantkit.formats.bnb.codec import TORCH_NAMES

    return TORCH_NAMES[model_dtype(stored.config, stored.tensors)]


def _replace_modules(model: "nn.Module", stored: Checkpoint, dtype: "torch.dtype") -> None:
    """Put a layer of bitsandbytes, without weights yet, wherever a quantized weight is stored."""
    linear: dict[str, nn.Module] = {}
    experts: dict[str, dict[str, nn.Module]] = defaultdict(dict)
    for name, tensor in stored.tensors.items():
        module = _module_of(name)
        if module is None or tensor.name != name or not name.endswith(".weight"):
            continue
        layer = _layer(stored, tensor, dtype)
        parent, is_expert, part = module.partition(".experts.")
        if is_expert:
            experts[f"{parent}.experts"][part] = layer or _plain(tensor, dtype)
        elif layer is not None:
            linear[module] = layer
    for path, layer in linear.items():
        _check_module(model, path, stored)
        model.set_submodule(path, layer)
    for path, parts in experts.items():
        _check_module(model, path, stored)
        fused = model.get_submodule(path)
        model.set_submodule(path, _make_experts(parts, fused.act_fn))


def _module_of(name: str) -> str | None:
    """The module in memory that a stored weight belongs to."""
    return name.removesuffix(".weight").replace(_PUBLISHED, _IN_MEMORY)


def _check_module(model: "nn.Module", path: str, stored: Checkpoint) -> None:
    try:
        model.get_submodule(path)
    except AttributeError:
        raise CheckpointError(
            f"{stored.path} holds weights of {path}, which this version of transformers does not "
            "have in such a model."
        ) from None


def _layer(stored: Checkpoint, tensor: SourceTensor, dtype: "torch.dtype") -> "nn.Module | None":
    """The layer for a weight, with parameters of the stored shapes; None for one not quantized."""
    import torch
    from bitsandbytes import nn

    state = read_state(stored.tensors, tensor.name)
    if state is not None:
        rows, columns = state.shape
        nested = bool(state.nested_block)
        layer = nn.Linear4bit(columns, rows, False, dtype, nested, state.kind, device="meta")
        codes = torch.empty(tensor.shape, dtype=torch.uint8, device="meta")
        layer.weight = nn.Params4bit(codes, requires_grad=False, quant_type=state.kind)
        return layer
    if tensor.dtype != "I8":
        return None
    rows, columns = tensor.shape
    threshold = stored.config["quantization_config"].get("llm_int8_threshold", 6.0)
    eight = nn.Linear8bitLt(columns, rows, False, False, threshold, device="meta")
    codes = torch.empty(tensor.shape, dtype=torch.int8, device="meta")
    eight.weight = nn.Int8Params(codes, requires_grad=False)
    return eight


def _plain(tensor: SourceTensor, dtype: "torch.dtype") -> "nn.Module":
    from torch import nn

    rows, columns = tensor.shape
    return nn.Linear(columns, rows, bias=False, device="meta", dtype=dtype)


def _make_experts(parts: Mapping[str, "nn.Module"], activation: "nn.Module") -> "nn.Module":
    """A stand-in for the fused experts: ``E.w1`` (gate), ``E.w2`` (down), ``E.w3`` (up)."""
    import torch
    from torch import nn

    class QuantizedExperts(nn.ModuleList):  # type: ignore[misc]  # torch is not checked
        """Experts with a linear layer per part; takes what the fused module takes."""

        def __init__(self) -> None:
            count = 1 + max(int(path.partition(".")[0]) for path in parts)
            super().__init__(
                nn.ModuleDict({part: parts[f"{e}.{part}"] for part in ("w1", "w2", "w3")})
                for e in range(count)
            )
            self.act_fn = activation

        def forward(
            self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            """Hidden states (tokens, hidden) through the experts that each token is routed to."""
            result = torch.zeros_like(hidden)
            for number in top_k_index.unique().tolist():
                expert = self[number]
                token, slot = torch.where(top_k_index == number)
                states = hidden[token]
                inner = self.act_fn(expert["w1"](states)) * expert["w3"](states)
                weighted = expert["w2"](inner) * top_k_weights[token, slot, None]
                result.index_add_(0, token, weighted.to(result.dtype))
            return result

    return QuantizedExperts()


def _place(model: Any, device_map: DeviceMap) -> dict[str, Any]:
    """A device for each module, named by the beginning of its path."""
    import accelerate
    import torch

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


def _fill(model: Any, stored: Checkpoint, devices: Mapping[str, Any]) -> None:
    """Read every tensor to its device, one matrix at a time."""
    import torch
    from bitsandbytes import nn

    for name, group in _groups(stored):
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        device = _device(path, devices)
        tensors = {key: tensor.to(device) for key, tensor in group.items()}
        if isinstance(module, nn.Linear4bit):
            weight = tensors.pop(kind)
            module.weight = nn.Params4bit.from_prequantized(
                weight, tensors, requires_grad=False, device=device, module=module
            )
            module.quant_state = module.weight.quant_state
        elif isinstance(module, nn.Linear8bitLt):
            weight = tensors[kind]
            module.weight = nn.Int8Params(
                weight, requires_grad=False, has_fp16_weights=False, CB=weight, SCB=tensors["SCB"]
            )
        else:
            wanted = getattr(module, kind)
            if wanted.shape != tensors[kind].shape:
                raise CheckpointError(f"{name} in {stored.path} has another shape than the model.")
            value = tensors[kind].to(wanted.dtype)
            setattr(module, kind, torch.nn.Parameter(value, requires_grad=False))


def _groups(stored: Checkpoint) -> Iterator[tuple[str, dict[str, "torch.Tensor"]]]:
    """Each weight's name in memory, and the tensors stored for it by the end of their names."""
    from safetensors import safe_open

    members: dict[str, dict[str, SourceTensor]] = defaultdict(dict)
    for name, tensor in stored.tensors.items():
        module, weight, rest = name.partition(".weight")
        owner = f"{module}.weight" if weight and f"{module}.weight" in stored.tensors else ""
        if not owner and name.endswith(".SCB"):
            owner = f"{name.removesuffix('.SCB')}.weight"
        if name.endswith(".weight_format"):
            continue
        owner = owner or name
        members[owner][rest.removeprefix(".") if rest else name.rpartition(".")[2]] = tensor
    files: dict[Path, Any] = {}
    for owner, parts in members.items():
        group = {}
        for key, tensor in parts.items():
            if tensor.file not in files:
                files[tensor.file] = safe_open(str(tensor.file), framework="pt")
            group[key] = files[tensor.file].get_tensor(tensor.name)
        yield owner.replace(_PUBLISHED, _IN_MEMORY), group


def _device(path: str, devices: Mapping[str, Any]) -> Any:
    while path not in devices and path:
        path = path.rpartition(".")[0]
    if path not in devices:
        raise PlanError(f"device_map says nothing about {path or 'the model'}; add it.")
    return devices[path]
