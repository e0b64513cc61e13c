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
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.names import folder_name
from quantkit.checkpoint.open import open_checkpoint, open_decoder, open_model
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
from quantkit.formats.layout import FileOptions, Layout
from quantkit.planning.plan import make_plan, make_plans
from quantkit.planning.quants import Quant
from quantkit.planning.recipe import EncodingOptions, Recipe, recipe_of

_FILES, _ENCODING, _BNB = FileOptions(), EncodingOptions(), BnbOptions()

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
    files: FileOptions = _FILES,
    encoding: EncodingOptions = _ENCODING,
    bnb: BnbOptions = _BNB,
    *,
    imatrix: Imatrix | None = None,
    choose: Choose | None = None,
    published: Model | None = None,
) -> Work:
    """Plan every quant of a checkpoint. Reads headers, config and tokenizer, and no weights.

    Args:
        source: the checkpoint, or its folder.
        quants: what to build.
        files: what they are called, and how large they are.
        encoding: the kernel, its search, and types of tensors.
        bnb: options of bitsandbytes quants.
        imatrix: the importance matrix, or one that stands for what is not made yet.
        choose: finds one more GGUF to build, by a recipe of its own.
        published: the model as transformers shows it, for one of no family of ours; then only
            formats for transformers can be planned.

    Raises:
        CheckpointError: the checkpoint is incomplete, damaged or of an unknown architecture.
        ImatrixError: an importance matrix is needed and absent, or of another model.
        PlanError: a type or a shard size makes no sense, or the kernel lacks the search.
        OutputError: the name is too long for files.
        NativeError: the kernel cannot be used.
        MissingPackageError: a quant needs a package that is not installed.

    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    folders = [quant for quant in quants if quant.format == "bnb"]
    model = published or (open_decoder(checkpoint) if folders else open_model(checkpoint))
    wanted = [(quant, recipe_of(quant, encoding)) for quant in quants if quant.format == "gguf"]
    plans = make_plans(model, wanted, imatrix)
    layouts: list[Layout] = []
    if published is not None:
        base_name = base_name_of(checkpoint, model, files.name)
    else:
        metadata = describe_checkpoint(checkpoint, model, files.name)
        if choose is not None:
            plans += make_plans(model, [choose(model, metadata, imatrix)], imatrix)
        base_name = metadata.base_name
        layouts += [lay_out(plan, metadata, imatrix, files.shard_size) for plan in plans]
    layouts += [
        lay_out_bnb(checkpoint, model, quant, bnb, base_name, files.shard_size) for quant in folders
    ]
    check_names(layouts)
    kernel = load_kernel(encoding.kernel, encoding.search)
    return with_reader(Work(checkpoint, model, base_name, tuple(layouts), kernel, imatrix))


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


def prepare_export(artifact: Path, quants: Sequence[Quant]) -> Work:
    """Plan GGUF quants of an artifact's dequantized weights.

    Args:
        artifact: a folder that this package, or transformers, wrote.
        quants: GGUF quants.

    Raises:
        CheckpointError: the folder is incomplete, damaged, or not of a format known here.
        ConverterError: the converter is needed and cannot be had, or does not describe it.
        MissingPackageError: reading it needs a package that is not installed.

    """
    checkpoint = as_checkpoint(artifact)
    model = open_model(checkpoint)
    # The folder's name, and no heuristics: they would take "int8" for a version.
    metadata = describe_checkpoint(checkpoint, model, folder_name(artifact))
    layouts = tuple(lay_out(make_plan(model, quant), metadata) for quant in quants)
    return Work(
        checkpoint,
        model,
        metadata.base_name,
        layouts,
        load_kernel("fast"),
        open_weights=weight_reader(checkpoint.read_rows),
    )
