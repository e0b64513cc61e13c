"""`quantkit.fit`: which quant of a model runs on a machine, how, and with how much to spare."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.api.budget import BudgetOptions, numbers_of
from quantkit.api.checked import checked
from quantkit.api.reporter import reporter
from quantkit.building.output import default_folder
from quantkit.checkpoint.converter.wish import ConverterOptions
from quantkit.core.errors import PlanError, QuantkitError
from quantkit.core.units import format_size, parse_size
from quantkit.fitting.answer import Answer, answer
from quantkit.fitting.commands import Steps, Typed, source_words, steps_to
from quantkit.fitting.hardware import Machine, MachineOptions
from quantkit.fitting.model import SizedModel
from quantkit.fitting.numbers import as_numbers
from quantkit.fitting.probe import Curve, probe
from quantkit.fitting.quality import Scale, find_comparison, measured_scale, recorded_scale
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.subject import Buildable, PlanOptions, open_subject
from quantkit.planning.quants import find_quants
from quantkit.recipes.machine import Found, MachineSearch, parse_machine

if TYPE_CHECKING:
    from quantkit.checkpoint.imatrix import Imatrix

_HERE = MachineOptions()
_USUAL = ContextSettings()
_AS_IT_IS = ConverterOptions()


@dataclass(frozen=True, slots=True)
class Searched:
    """The best mixture that a search finds for a machine, and the command that builds it."""

    found: Found
    command: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """Every quant of a model on a machine, and what to do now.

    ``answer`` has the rows and which one to take. ``steps`` are the commands that get and run it,
    None where none fits. ``searched`` is None where nothing was searched, or nothing found.
    """

    answer: Answer
    steps: Steps | None
    searched: Searched | None

    def as_numbers(self) -> dict[str, Any]:
        """Everything as JSON values, every size in bytes."""
        numbers = as_numbers(self.answer, self.steps)
        if self.searched is None:
            return numbers
        found = numbers_of(self.searched.found, self.answer.machine)
        return numbers | {"searched": {**found, "command": self.searched.command}}


def fit(
    model: str | Path,
    quants: str | Sequence[str] = (),
    *,
    machine: str | MachineOptions = _HERE,
    settings: ContextSettings = _USUAL,
    shard_size: int | str | None = None,
    imatrix: str | Path | None = None,
    compare: str | Path | None = None,
    converter: ConverterOptions = _AS_IT_IS,
    search: bool = True,
    note: Callable[[str], None] | None = None,
) -> Fitted:
    """Tell which quant of a model to take for a machine, how to run it, and what else would fit.

    Only headers are read.

    Args:
        model: a folder, a GGUF, a Hub id, or a bundled name such as ``mixtral-8x22b``.
        quants: names of those to choose from; by default all.
        machine: ``24GB + 64GB``, GPUs first and RAM last, or the name of a profile; or options that
            say it in parts. By default the machine that this runs on.
        settings: how it is to be run.
        shard_size: bytes, or such as ``40GB``: files that would be larger are split.
        imatrix: the importance matrix to build with.
        compare: what ``quantkit compare --json`` printed, to rank by; by default what lies among
            the model's files, else what was published.
        converter: how llama.cpp's converter is asked, where it is.
        search: whether to look for a mixture made for the machine, too, where no quants are named.
        note: told what was fetched.

    Raises:
        CheckpointError: there is no such model, or it is incomplete.
        GGUFError: a GGUF cannot be read, or is none of the quants.
        HardwareError, SizeError: the machine is not known, or a size is none.
        FitError: the settings make no sense for this model, or ``compare`` is of another.
        PlanError: an option would do nothing.
        NativeError: llama.cpp, which is asked for the size of its buffers, does not run.

    """
    if not isinstance(machine, str):
        machine = checked(machine, MachineOptions)
    chosen = find_quants(quants)
    # What transformers loads is shown in any case.
    gguf = tuple(quant for quant in chosen if quant.format == "gguf")
    if chosen and not gguf:
        raise PlanError(
            "--quant chooses GGUF quants, and what transformers loads is shown in any case; leave "
            "it out."
        )
    on, words = _machine(machine)
    split = f"{shard_size}B" if isinstance(shard_size, int) else shard_size
    wishes = PlanOptions(
        gguf or None,
        parse_size(split) if split is not None else None,
        _load(imatrix),
        converter if note is None else replace(converter, say=note),
    )
    subject = open_subject(str(model), wishes)
    if subject.n_fetched:
        tell = reporter(None, note).note
        tell(f"Fetched {format_size(subject.n_fetched)} of {subject.title}'s files.")
    if subject.is_as_it_is:
        _refuse_planning(quants, split, imatrix)
    measured = _measured(str(model), subject, compare)
    here = isinstance(machine, MachineOptions) and machine.is_here
    curve = probe(subject, settings.usual_for(subject.shape), gpu=here and bool(on.gpus))
    result = answer(subject, curve, on, measured, weighted=imatrix is not None)
    matrix = None if imatrix is None else Path(imatrix)
    typed = Typed(str(model), matrix, split, converter.tree, converter.mtp)
    steps = searched = None
    if (best := result.best) is not None:
        folder = _folder_of_build(subject)
        steps = steps_to(best.variant, best.loss, best.command, subject, typed, folder)
    if search and subject.buildable is not None and not chosen:
        found = _search(subject.buildable, wishes, curve, on)
        if found is not None:
            budget = _budget(found, words, settings)
            command = ["quantkit", "build", *source_words(subject, typed), *budget]
            searched = Searched(found, shlex.join(command))
    return Fitted(result, steps, searched)


def _machine(wish: str | MachineOptions) -> tuple[Machine, str | None]:
    """The machine, and how ``--for`` takes it, if it does."""
    if isinstance(wish, str):
        return parse_machine(wish), wish
    return wish.find(), wish.words


def _load(imatrix: str | Path | None) -> "Imatrix | None":
    if imatrix is None:
        return None
    from quantkit.checkpoint.imatrix import load_imatrix

    return load_imatrix(Path(imatrix))


def _refuse_planning(
    quants: Sequence[str], shard_size: str | None, imatrix: str | Path | None
) -> None:
    options = {"--quant": quants, "--shard-size": shard_size, "--imatrix": imatrix}
    for option, given in options.items():
        if given:
            raise PlanError(
                f"{option} is for what can be built, and a quantized GGUF is what it is; leave it "
                "out."
            )


def _measured(model: str, subject: SizedModel, compare: str | Path | None) -> Scale | None:
    """What was measured of the model's quants, if anything was."""
    measured = None
    if (file := find_comparison(model) if compare is None else Path(compare)) is not None:
        measured = measured_scale(file, subject)
    elif subject.origin == "artifacts":
        measured = recorded_scale(Path(model), subject)
    if compare is not None and measured is None:
        raise QuantkitError(f"{compare} has figures of none of these quants; leave --compare out.")
    return measured


def _folder_of_build(subject: SizedModel) -> str:
    """Where a build of the model puts its files."""
    if subject.buildable is None:
        return ""
    return str(default_folder(subject.buildable.metadata.base_name, only_gguf=True))


def _search(source: Buildable, wishes: PlanOptions, curve: Curve, machine: Machine) -> Found | None:
    """The best recipe for a machine; None where none fits, or nothing is left to choose."""
    weighted = wishes.imatrix is not None
    try:
        search = BudgetOptions().prepare(source, wishes, weighted=weighted, unquantized=False)
        return MachineSearch(search, source, wishes, curve, machine).best()
    except PlanError:
        return None


def _budget(found: Found, words: str | None, settings: ContextSettings) -> list[str]:
    """How ``quantkit build`` is asked for a recipe: --for takes a machine and a context alone."""
    if words is None or settings != ContextSettings(settings.context):
        return ["--budget", f"{found.variant.file_bytes}B"]
    context = ["--context", f"{settings.context}"] if settings.context else []
    return ["--for", words, *context]
