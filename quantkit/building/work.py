"""From a checkpoint folder and a wish to the work that the engine does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from quantkit.building.hub import HubReader
from quantkit.building.kept import KeptSource
from quantkit.building.output import check_names
from quantkit.building.source import Reading, RowsReader, SourceReader, WeightReader
from quantkit.checkpoint.ahead import MOST_BYTES
from quantkit.checkpoint.checkpoint import Checkpoint, RowReader
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.checkpoint.imatrix import Imatrix, load_imatrix
from quantkit.checkpoint.names import folder_name
from quantkit.checkpoint.open import open_checkpoint, open_decoder, open_model
from quantkit.core.errors import PlanError
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.kernel import Kernel, load_kernel
from quantkit.families.model import Model
from quantkit.formats.bnb.codec import BnbOptions
from quantkit.formats.bnb.plan import lay_out_bnb
from quantkit.formats.dequantized import as_checkpoint
from quantkit.formats.gguf.layout import lay_out
from quantkit.formats.gguf.metadata import (
    ModelMetadata,
    base_name_of,
    describe_checkpoint,
)
from quantkit.formats.layout import Layout
from quantkit.planning.plan import Plan, make_plan, make_plans
from quantkit.planning.quants import Quant
from quantkit.planning.recipe import Override, Recipe, recipe_of

_NO_BNB = BnbOptions()
_WISH = ConverterOptions()

# What finds a recipe for a model, with the keys of its files and the importance matrix, if any.
Choose: TypeAlias = Callable[[Model, ModelMetadata, Imatrix | None], tuple[Quant, Recipe]]


@dataclass(frozen=True, slots=True)
class Work:
    """What to build: one checkpoint, the layouts of its artifacts, and the way to encode.

    ``read_ahead`` is the most bytes that its reader likes to hold before they are needed, ``kept``
    the folder that a checkpoint from the Hub is stored in meanwhile. ``known`` has the weight files
    of which only what is needed has to be read, by name, because another build read them as a
    whole: the sha256 that it found, or none where it did not.
    """

    checkpoint: Checkpoint
    model: Model
    base_name: str
    layouts: tuple[Layout, ...]
    kernel: Kernel
    imatrix: Imatrix | None = None
    open_weights: Callable[[Reading], WeightReader] = SourceReader
    read_ahead: int = 0
    kept: KeptSource | None = None
    known: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of all artifacts."""
        return sum(layout.n_bytes for layout in self.layouts)

    @property
    def gguf(self) -> Layout | None:
        """The first layout that llama.cpp loads."""
        return next((x for x in self.layouts if x.plan.quant.format == "gguf"), None)

    @property
    def is_projector(self) -> bool:
        """Whether it is the vision or audio part of a model, and not the model."""
        return any(layout.takes is not None for layout in self.layouts)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What users must hear of these artifacts: sentences that reject none of them."""
        remarks = (text for layout in self.layouts for text in layout.remarks)
        return tuple(dict.fromkeys((*self.checkpoint.remarks, *remarks)))

    def remarking(self, remarks: Sequence[str]) -> "Work":
        """The same work with more remarks on its GGUF files."""
        return replace(self, layouts=tuple(x.remarking(remarks) for x in self.layouts))


def prepare(
    source: Path | Checkpoint,
    quants: Sequence[Quant],
    *,
    name: str | None = None,
    imatrix_file: Path | None = None,
    imatrix: Imatrix | None = None,
    overrides: Sequence[Override] = (),
    output: Encoding | None = None,
    token_embedding: Encoding | None = None,
    shard_size: int | None = None,
    kernel: str = "fast",
    search: str = "ggml",
    bnb: BnbOptions = _NO_BNB,
    kept: KeptSource | None = None,
    allow_requantize: bool = False,
    choose: Choose | None = None,
    published: Model | None = None,
) -> Work:
    """Plan every quant of a checkpoint. Reads headers, config and tokenizer, and no weights.

    Args:
        source: the checkpoint, or its folder.
        quants: what to build.
        name: the model's name, instead of the one in its card or folder.
        imatrix_file: importance matrix, in either of llama.cpp's formats.
        imatrix: one that was read, instead, or that stands for one that is not made yet.
        overrides: encodings for tensors by name pattern.
        output: the encoding of the output matrix, whatever the quant.
        token_embedding: the encoding of the embeddings, whatever the quant.
        shard_size: the most tensor bytes per file, None for single files.
        kernel: a key of ``encodings.kernel.KERNELS``.
        search: how scales are chosen, ``ggml`` or ``best``.
        bnb: options of bitsandbytes quants.
        kept: where to store a checkpoint from the Hub while it is read.
        allow_requantize: take a GGUF whose weights are quantized already.
        choose: finds one more GGUF to build, by a recipe of its own.
        published: the model as transformers shows it, for one of no family of ours; then only
            formats for transformers can be planned.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or of an unknown architecture.
        ImatrixError: an importance matrix is needed and absent, or of another model.
        PlanError: an override or a shard size makes no sense, or the kernel lacks the search.
        OutputError: the name is too long for files.
        NativeError: the kernel cannot be used.
        MissingPackageError: a quant needs a package that is not installed.

    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    bnb_quants = [quant for quant in quants if quant.format == "bnb"]
    decoder = published or (open_decoder(checkpoint) if bnb_quants else None)
    model = decoder or open_model(checkpoint)
    if imatrix_file is not None:
        imatrix = load_imatrix(imatrix_file)
    wanted = [
        (quant, recipe_of(quant, overrides, output, token_embedding))
        for quant in quants
        if quant.format == "gguf"
    ]
    plans = make_plans(model, wanted, imatrix)
    layouts: list[Layout] = []
    if published is not None:
        base_name = base_name_of(checkpoint, model, name)
    else:
        metadata = describe_checkpoint(checkpoint, model, name)
        if choose is not None:
            plans += make_plans(model, [choose(model, metadata, imatrix)], imatrix)
        base_name = metadata.base_name
        layouts += [lay_out(plan, metadata, imatrix, shard_size) for plan in plans]
    _check_requantizing(checkpoint, plans, allowed=allow_requantize)
    if decoder is not None:
        layouts += [
            lay_out_bnb(checkpoint, decoder, quant, bnb, base_name, shard_size)
            for quant in bnb_quants
        ]
    check_names(layouts)
    encoder = load_kernel(kernel, search)
    work = Work(
        checkpoint,
        model,
        base_name,
        tuple(layouts),
        encoder,
        imatrix,
    )
    return with_reader(work, kept)


def with_reader(work: Work, kept: KeptSource | None = None) -> Work:
    """The same work with what reads its checkpoint, which is stored meanwhile if it is ``kept``."""
    checkpoint = work.checkpoint
    work = replace(work, open_weights=_reader_of(checkpoint))
    repo, description = checkpoint.repo, checkpoint.description
    if repo is None or (checkpoint.read_rows is not None and description is None):
        return work
    return replace(
        work,
        open_weights=lambda reading: HubReader(repo, reading, kept, description),
        read_ahead=MOST_BYTES,
        kept=kept,
    )


def _check_requantizing(checkpoint: Checkpoint, plans: Sequence[Plan], *, allowed: bool) -> None:
    """Refuse to encode what is quantized already, as llama-quantize does; copies are no matter.

    Raises:
        PlanError: a plan would, or none does and it is ``allowed`` for nothing.

    """
    again = next(filter(None, (plan.requantized for plan in plans)), None)
    if again and not allowed:
        raise PlanError(
            f"{checkpoint.path} is quantized already ({again.name} is {again.stored}), and quants "
            "of quants are worse; give a GGUF in bf16, f16 or f32, or use it anyway with "
            "--allow-requantize."
        )
    if allowed and not again:
        raise PlanError(
            f"--allow-requantize does nothing: no quantized weight of {checkpoint.path} would be "
            "encoded again; leave it out."
        )


def _reader_of(checkpoint: Checkpoint) -> Callable[[Reading], WeightReader]:
    """What reads a checkpoint for the engine; of computed tensors, what they are made of."""
    description = checkpoint.description
    if description is None or not description.computed:
        return weight_reader(checkpoint.read_rows)
    return lambda reading: SourceReader(reading, description)


def weight_reader(read_rows: RowReader | None) -> Callable[[Reading], WeightReader]:
    """What reads a source for the engine: its files front to back, or rows through a function."""
    if read_rows is None:
        return SourceReader

    def open_weights(reading: Reading) -> WeightReader:
        return RowsReader(reading, read_rows)

    return open_weights


def prepare_export(
    artifact: Path, quants: Sequence[Quant], *, kernel: str = "fast", wish: ConverterOptions = _WISH
) -> Work:
    """Plan GGUF quants of an artifact's dequantized weights.

    Args:
        artifact: a folder that this package, or transformers, wrote.
        quants: GGUF quants.
        kernel: a key of ``encodings.kernel.KERNELS``.
        wish: how llama.cpp's converter is asked, where it is: of no family of ours.

    Raises:
        CheckpointError: the folder is incomplete, damaged, or not of a format known here.
        ConverterError: the converter is needed and cannot be had, or does not describe it.
        MissingPackageError: reading it needs a package that is not installed.

    """
    checkpoint = as_checkpoint(artifact, wish)
    model = open_model(checkpoint)
    # The folder's name, and no heuristics: they would take "int8" for a version.
    metadata = describe_checkpoint(checkpoint, model, folder_name(artifact))
    layouts = tuple(lay_out(make_plan(model, quant), metadata) for quant in quants)
    return Work(
        checkpoint,
        model,
        metadata.base_name,
        layouts,
        load_kernel(kernel),
        open_weights=weight_reader(checkpoint.read_rows),
    )
