"""A build as it was asked for: judged, its source opened, and nothing planned yet."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.api.checked import checked
from quantkit.api.chooser import Chooser, plan_searched
from quantkit.api.hub import keep_in
from quantkit.api.needs import AUTO, BUILD, BuildWish, refuse_idle
from quantkit.api.options import BuildOptions, TextOptions, changed
from quantkit.api.projector import plan_projector
from quantkit.api.publication import Publication, plan_publication
from quantkit.api.published import Published, as_published
from quantkit.api.reporter import Reporter
from quantkit.building.kept import KeptSource
from quantkit.building.output import default_folder, require_place
from quantkit.building.work import Work, prepare, with_reader
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.checkpoint.open import (
    find_source,
    is_gguf_source,
    open_checkpoint,
    open_model,
    open_once,
    require_checkpoint,
)
from quantkit.checkpoint.open import refuse_idle as no_converter
from quantkit.core.errors import PlanError, QuantkitError
from quantkit.core.files import MOST_TEXT, read_file, read_text
from quantkit.formats.gguf.metadata import describe_checkpoint
from quantkit.planning.plan import Plan
from quantkit.planning.quants import Quant, all_quants, find_quants

_LIKE_A_RECIPE = "q4_k_m"  # what options do beside, before the model is known


@dataclass(frozen=True, slots=True)
class Order:
    """What to build of which source, and where to; ``choose`` finds one more GGUF.

    ``kept`` is the folder that a checkpoint from the Hub is stored in meanwhile.
    """

    options: BuildOptions
    quants: tuple[Quant, ...]
    choose: Chooser | None
    publication: Publication | None
    source: Path | Checkpoint
    published: Published | None
    kept: KeptSource | None
    out: Path | None
    tell: Reporter

    @property
    def has_gguf(self) -> bool:
        """Whether some GGUF is asked for."""
        return self.choose is not None or any(quant.format == "gguf" for quant in self.quants)

    @property
    def gptq(self) -> tuple[Quant, ...]:
        """What is made layer by layer, with a text."""
        return tuple(quant for quant in self.quants if quant.format == "gptq")

    @property
    def apart(self) -> tuple[Quant, ...]:
        """What takes a pass of its own beside GGUFs: of a model of no family of ours."""
        if self.published is None or not self.has_gguf:
            return ()
        return tuple(quant for quant in self.quants if quant.format not in ("gguf", "gptq"))

    @property
    def slabs(self) -> tuple[Quant, ...]:
        """What is made in the first pass over the weights, beside what is searched."""
        apart = self.apart
        return tuple(q for q in self.quants if q.format != "gptq" and q not in apart)

    @property
    def has_slabs(self) -> bool:
        """Whether there is a first pass."""
        return bool(self.slabs) or self.choose is not None

    @property
    def matrices(self) -> tuple[Path, ...]:
        """The importance matrices that are there."""
        return tuple(file for file in self.options.encoding.imatrix if file != AUTO)

    @property
    def makes_matrix(self) -> bool:
        """Whether an importance matrix is made first."""
        return AUTO in self.options.encoding.imatrix

    @property
    def taken(self) -> frozenset[str]:
        """The quants that are built anyway, in a form of the user's."""
        of_user = any(self.options.encoding.parse_types())
        return frozenset(quant.name for quant in self.slabs) if of_user else frozenset()

    def folder_of(self, base_name: str) -> Path:
        """Where files of a model of that name go."""
        only_gguf = all(quant.format == "gguf" for quant in self.quants)
        return self.out or default_folder(base_name, only_gguf=only_gguf)

    @property
    def folder(self) -> Path:
        """The output folder, for which the model's name may have to be found out."""
        if self.out is not None:
            return self.out
        source = self.source
        checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
        name = self.options.files.name
        return self.folder_of(
            describe_checkpoint(checkpoint, open_model(checkpoint), name).base_name
        )

    def work(self, matrix: Imatrix | None) -> Work:
        """The first pass, planned.

        Raises:
            PlanError: as `prepare` does, or quantized weights are not to be encoded again.

        """
        options = self.options
        work = prepare(
            self.source,
            self.slabs,
            options.files,
            options.encoding,
            options.bnb,
            imatrix=matrix,
            choose=self.choose,
            published=self.published.model if self.published and not self.has_gguf else None,
        )
        _check_requantizing(work, allowed=options.encoding.allow_requantize)
        return with_reader(work, self.kept)

    def work_apart(self) -> Work | None:
        """The pass of its own that some quants take, planned; None where there are none."""
        if self.published is None or not self.apart:
            return None
        options, shown = self.options, self.published
        chosen = options.files, options.encoding, options.bnb
        work = prepare(shown.checkpoint, self.apart, *chosen, published=shown.model)
        return with_reader(work, self.kept)

    def with_projector(self, work: Work) -> tuple[Work, Work | None]:
        """The first pass, and that over the model's vision or audio part, if it has one."""
        if not self.has_gguf:
            return work, None
        return plan_projector(work, self.options.encoding.mmproj, self.options.files.name)

    def stored_in(self, source: Path | Checkpoint) -> "Order":
        """The same of a source whose weights are on the disk now."""
        published = self.published and self.published.stored_in(source)
        return replace(self, source=source, published=published)


def take_order(
    source: str,
    quants: Sequence[str],
    options: BuildOptions,
    out: str | Path | None,
    tell: Reporter,
    given: Container[str] | None,
    *,
    writes: bool,
) -> Order:
    """Judge what is asked for, as far as that is possible without weights, and open the source.

    Args:
        source: what a user points at.
        quants: names of quants and sets.
        options: how they are built.
        out: the output folder, None for the usual one.
        tell: who hears remarks.
        given: the options that somebody gave, by the command line's names; None for those that are
            not as they are by themselves.
        writes: whether it will be built, so that the folder must be one.

    Raises:
        PlanError: what is asked for makes no sense, or an option would do nothing.
        QuantkitError: the source cannot be opened, or the output folder not be written.

    """
    options, out = checked(options, BuildOptions), None if out is None else Path(out)
    options = replace(options, converter=replace(options.converter, say=tell.note))
    encoding, checks, resources = options.encoding, options.checks, options.resources
    searches = options.recipe is not None or options.budget.is_given
    if options.files.name is not None and not options.files.name.strip():
        raise PlanError("--name is empty; give a name, or leave it out.")
    chosen = find_quants(quants)
    if not chosen and not searches:
        raise PlanError(
            "Say what to build: --quant NAME, --recipe FILE, or the best within --budget SIZE, "
            "--bpw BITS or --for 'GPU + RAM'; quantkit quants lists the names."
        )
    encoding.parse_types()  # or refuses them
    auto = AUTO in encoding.imatrix
    if auto and len(encoding.imatrix) > 1:
        raise PlanError(
            "--imatrix auto makes one; to add it to others, make it with quantkit calibrate "
            "--continue FILE, and give what that writes."
        )
    wish = BuildWish(
        (*chosen, all_quants()[_LIKE_A_RECIPE]) if searches else chosen,
        options,
        only_searched=searches and all(quant.format != "gguf" for quant in chosen),
    )
    refuse_idle(changed(options) if given is None else given, BUILD, wish)
    choose = plan_searched(options, source)
    _refuse_seen(options.contest.compare_text, options.text)
    publication = plan_publication(options.publication, source, wish.quants, smoke=checks.smoke)
    if out is not None and writes:
        require_place(out)
    found = find_source(source)
    if checks.prove:
        require_checkpoint(
            found, "leave --prove out, or give the checkpoint that it was converted from"
        )
    if auto and is_gguf_source(found) and options.text.device != "cpu":
        raise PlanError("--device is for checkpoints, and llama.cpp runs a GGUF; leave it out.")
    if resources.cluster and isinstance(found, Path):
        found = found.absolute()  # the nodes' processes run elsewhere
    published = None
    if any(quant.format != "gguf" for quant in chosen):
        require_checkpoint(
            found,
            "only other GGUFs can be made of it, so leave the other quants out, or give the "
            "checkpoint that it was converted from",
        )
        published = as_published(found, chosen)
    kept = keep_in(resources.keep_source, found)
    if published is None or wish.has("gguf"):
        found = open_once(found, options.converter)
    else:
        found = published.checkpoint
        no_converter(options.converter, source)
    return Order(
        options,
        tuple(chosen),
        choose,
        publication,
        found,
        published,
        kept,
        out,
        tell,
    )


def _check_requantizing(work: Work, *, allowed: bool) -> None:
    """Refuse to encode what is quantized already, as llama-quantize does; copies are no matter.

    Raises:
        PlanError: a plan would, or none does and it is ``allowed`` for nothing.

    """
    plans = (layout.plan for layout in work.layouts)
    stored = (plan.requantized for plan in plans if isinstance(plan, Plan))
    again, path = next(filter(None, stored), None), work.checkpoint.path
    if again and not allowed:
        raise PlanError(
            f"{path} is quantized already ({again.name} is {again.stored}), and quants of quants "
            "are worse; give a GGUF in bf16, f16 or f32, or use it anyway with --allow-requantize."
        )
    if allowed and not again:
        raise PlanError(
            f"--allow-requantize does nothing: no quantized weight of {path} would be encoded "
            "again; leave it out."
        )


def _refuse_seen(compare_text: Path | None, text: TextOptions) -> None:
    """Refuse to measure candidates on a text that the importance matrix is made from.

    Raises:
        CalibrationError: a weight of a text is not a number.
        PlanError: it is one of the texts, or a part of one.
        TextError: it cannot be read.

    """
    sources = text.sources
    if compare_text is None:
        return
    own = read_text(compare_text)
    for source in sources:
        try:
            seen = own in read_file(source.file, most=MOST_TEXT)
        except QuantkitError:
            continue  # calibration says so
        if seen:
            raise PlanError(
                f"--compare-text {compare_text} is in {source.file}, which the importance matrix "
                "is made from, and candidates are measured on text that nothing was fitted to; "
                "give another."
            )
