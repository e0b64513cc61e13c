"""Load a GPTQ folder into transformers, the experts of a mixture included, in plain PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.folder import open_quantized
from quantkit.core.errors import CheckpointError, MissingPackageError
from quantkit.core.packages import why_missing
from quantkit.formats.gptq.reader import packed_matrices, read_settings
from quantkit.formats.gptq.stored import PARTS

if TYPE_CHECKING:
    import torch

    from quantkit.formats.gptq.layer import PackedLinear
    from quantkit.formats.loading import DeviceMap


def load(folder: str | Path, *, device_map: "DeviceMap" = None) -> Any:
    """The model in a folder of GPTQ weights, ready to generate, as transformers has it.

    It needs neither GPTQModel nor auto-gptq: weights are dequantized when a layer is called, on any
    device. A program with kernels of its own is faster.

    Args:
        folder: of an artifact, on disk.
        device_map: as in transformers: ``auto``, a device, or devices by module name; None for
            the CPU, or the first GPU where there is one.

    Raises:
        CheckpointError: the folder is incomplete, damaged, or not GPTQ's.
        MissingPackageError: torch, transformers or accelerate is not installed.
        PlanError: the device map puts modules on the disk.

    """
    try:
        import accelerate  # noqa: F401 - it makes the empty model
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(why_missing(str(error.name), "gptq", "Loading")) from None
    stored = open_quantized(Path(folder))
    settings = stored.config["quantization_config"]
    if settings.get("quant_method") != "gptq":
        raise CheckpointError(f"{folder} is not a GPTQ folder; load it with transformers.")
    from quantkit.formats.loading import load_model

    bits, group_size = read_settings(stored)
    shapes = packed_matrices(stored, bits, group_size)
    model = load_model(stored, _Gptq(stored, bits, shapes), device_map)
    # Not a GPTQConfig, which may ask for optimum.
    model.config.quantization_config = dict(settings)
    return model


@dataclass(frozen=True, slots=True)
class _Gptq:
    """A `quantkit.formats.loading.Scheme`: packed words of so many bits."""

    stored: Checkpoint
    bits: int
    shapes: Mapping[str, tuple[int, int]]

    def weights(self) -> Mapping[str, tuple[int, int]]:
        """The shapes of all."""
        return self.shapes

    def tensors(self, weight: str) -> Mapping[str, str]:
        """The four tensors of one."""
        module = weight.removesuffix("weight")
        return {part: f"{module}{part}" for part in PARTS}

    def layer(self, weight: str, _dtype: "torch.dtype") -> "PackedLinear":
        """A layer with buffers of the stored shapes."""
        import torch

        from quantkit.formats.gptq.layer import PackedLinear

        rows, columns = self.shapes[weight]
        empty = {
            part: torch.empty(
                self.stored.tensors[name].shape,
                dtype=torch.float16 if part == "scales" else torch.int32,
                device="meta",
            )
            for part, name in self.tensors(weight).items()
        }
        return PackedLinear(columns, rows, self.bits, empty)

    def put(self, layer: Any, tensors: "Mapping[str, torch.Tensor]", _device: Any) -> None:
        """Words and scales into a layer."""
        for name, tensor in tensors.items():
            layer.register_buffer(name, tensor)
