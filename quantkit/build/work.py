"""From a checkpoint folder and a wish to the work that the engine does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.folder import Checkpoint, open_checkpoint
from quantkit.checkpoint.imatrix import Imatrix, load_imatrix
from quantkit.encodings.kernel import Kernel, load_kernel
from quantkit.families import find_family
from quantkit.families.model import Model
from quantkit.formats.gguf.layout import Layout, lay_out
from quantkit.formats.gguf.metadata import describe_checkpoint
from quantkit.plan.llama_quantize import Override
from quantkit.plan.plan import check_sources, make_plan
from quantkit.plan.quants import Quant


@dataclass(frozen=True, slots=True)
class Work:
    """What to build: one checkpoint, the layouts of its artifacts, and the way to encode."""

    checkpoint: Checkpoint
    model: Model
    base_name: str
    layouts: tuple[Layout, ...]
    kernel: Kernel
    imatrix: Imatrix | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all artifacts."""
        return sum(layout.n_bytes for layout in self.layouts)


def prepare(
    folder: Path,
    quants: Sequence[Quant],
    *,
    name: str | None = None,
    imatrix_file: Path | None = None,
    overrides: Sequence[Override] = (),
    shard_size: int | None = None,
    kernel: str = "fast",
    search: str = "ggml",
) -> Work:
    """Plan every quant of a checkpoint. Reads headers, config and tokenizer, and no weights.

    Args:
        folder: the checkpoint.
        quants: what to build.
        name: the model's name, instead of the one in its card or folder.
        imatrix_file: importance matrix, in either of llama.cpp's formats.
        overrides: encodings for tensors by name pattern.
        shard_size: the most tensor bytes per file, None for single files.
        kernel: a key of ``encodings.kernel.KERNELS``.
        search: how scales are chosen, ``ggml`` or ``best``.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or of an unknown architecture.
        ImatrixError: an importance matrix is needed and absent, or does not fit.
        PlanError: an override or a shard size makes no sense, or the kernel lacks the search.
        NativeError: the kernel cannot be used.

    """
    checkpoint = open_checkpoint(folder)
    model = find_family(checkpoint.config).describe(checkpoint.config, checkpoint.tensors)
    check_sources(model, checkpoint.tensors)
    imatrix = load_imatrix(imatrix_file) if imatrix_file else None
    plans = [make_plan(model, quant, imatrix, overrides) for quant in quants]
    metadata = describe_checkpoint(checkpoint, model, name)
    layouts = tuple(lay_out(plan, metadata, imatrix, shard_size) for plan in plans)
    encoder = load_kernel(kernel, search)
    return Work(checkpoint, model, metadata.base_name, layouts, encoder, imatrix)
