"""How much a model's predictions care about the rounding of each tensor, measured in one pass.

The Kullback-Leibler divergence that a small error E of weights makes is half of E' F E, where F is
the Fisher information of the predictions. Of F the diagonal is taken: the mean square, over chunks
of text, of the gradient of each weight, with labels drawn from the model's own predictions. It
falls out of one way through the layers and back.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from quantkit.building.source import identify_source, require_unchanged
from quantkit.calibration.lockstep.backward import Bend, find_bend
from quantkit.calibration.lockstep.forward import LockstepForward, stand_ready
from quantkit.calibration.lockstep.gguf_names import Inputs
from quantkit.calibration.settings import Settings
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.checkpoint.imatrix import Imatrix
from quantkit.core.errors import PlanError
from quantkit.core.tensors import SourceTensor
from quantkit.core.version import __version__
from quantkit.core.writing import is_own
from quantkit.encodings.kernel import Kernel
from quantkit.families.model import Model
from quantkit.recipes.candidates import all_floors, offer
from quantkit.recipes.errors import measure_errors
from quantkit.recipes.losses import Measured, read_measured, write_measured

_EMBEDDINGS = "token_embd.weight"


def measure(
    checkpoint: Checkpoint,
    model: Model,
    corpus: Corpus,
    imatrix: Imatrix | None,
    kernel: Kernel,
    settings: Settings,
    *,
    rows: int | None = None,
    jobs: int = 1,
    keep: Path | None = None,
    report: Callable[[float], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Measured:
    """What rounding loses: sensitivities and, in every encoding that a recipe may choose, errors.

    Args:
        checkpoint: where weights come from.
        model: the checkpoint's.
        corpus: the text; another than the importance matrix was made from.
        imatrix: importance, or None.
        kernel: what encodes.
        settings: as for `measure_sensitivities`.
        rows: as for `measure_errors`.
        jobs: threads that encode.
        keep: a file for what is finished, from which a killed run goes on: first all
            sensitivities, then the errors of each tensor. It is left there.
        report: told the share of the work that is done.
        say: told where kernels have to be compiled before, and what an earlier run has measured.

    Raises:
        CalibrationError, CheckpointError, NoSpaceError: as `measure_sensitivities`.
        WeightsError, ImatrixError: as `measure_errors`.

    """
    weighted = {
        target.name
        for target in model.targets
        if imatrix is not None and imatrix.columns_of(target) is not None
    }
    offers = offer(model, weighted, lifted=all_floors())
    wanted = {one.target.name: one.encodings for one in offers}
    identity = _identity(checkpoint, corpus, imatrix, kernel, rows)
    earlier = _resume(keep, model.arch, identity)
    sensitivities = dict(earlier.sensitivities)
    errors = dict(earlier.errors)
    missing = {name: kinds for name, kinds in wanted.items() if (name, kinds[0].name) not in errors}
    if sensitivities:
        say(
            "An earlier run has measured all sensitivities and the errors of "
            f"{len(wanted) - len(missing)} of {len(wanted)} tensors."
        )
    else:
        sensitivities = measure_sensitivities(
            checkpoint, model, corpus, settings, lambda share: report(share / 2)
        )

    def finish(name: str, found: Mapping[str, float]) -> None:
        errors.update({(name, kind): error for kind, error in found.items()})
        if keep is not None:
            write_measured(keep, Measured(model.arch, sensitivities, errors, identity))

    if keep is not None:
        write_measured(keep, Measured(model.arch, sensitivities, errors, identity))
    measure_errors(
        checkpoint,
        model,
        missing,
        imatrix,
        kernel,
        rows=rows,
        jobs=jobs,
        finish=finish,
        report=lambda share: report((1 + share) / 2),
        say=say,
    )
    looked_at = "all rows" if rows is None else f"{rows} rows of each matrix"
    return Measured(
        arch=model.arch,
        sensitivities=sensitivities,
        errors=errors,
        basis=(
            f"squared gradients over {corpus.chunks} chunks of {corpus.context} tokens of "
            f"{', '.join(corpus.names)}; errors of {looked_at}"
        ),
        imatrix=None if imatrix is None else imatrix.sha256,
    )


def _identity(
    checkpoint: Checkpoint,
    corpus: Corpus,
    imatrix: Imatrix | None,
    kernel: Kernel,
    rows: int | None,
) -> str:
    """What tells a measurement from others; in its file it stands where the basis will be."""
    parts = [
        __version__,
        identify_source(stored_view(checkpoint)),
        corpus.tokens.shape,
        hashlib.sha256(corpus.tokens.tobytes()).hexdigest(),
        None if imatrix is None else imatrix.sha256,
        kernel.version,
        rows,
    ]
    return f"unfinished {hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def _resume(keep: Path | None, arch: str, identity: str) -> Measured:
    """What an earlier run of the same measurement has finished."""
    nothing = Measured(arch, {})
    if keep is None or not is_own(keep):
        return nothing
    try:
        found = read_measured(keep)
    except PlanError:
        return nothing
    return found if found.basis == identity else nothing


def measure_sensitivities(
    checkpoint: Checkpoint,
    model: Model,
    corpus: Corpus,
    settings: Settings,
    report: Callable[[float], None] = lambda _: None,
) -> dict[str, float]:
    """The mean divergence (nats) per unit of relative weighted error, by a GGUF's tensor.

    Tensors that the model multiplies nothing by, as far as can be seen, have none.

    Args:
        checkpoint: where weights come from; a layer's are in memory at a time, of experts a matrix.
        model: the checkpoint's.
        corpus: the text, of which the second half of each chunk is scored.
        settings: the device, and above how many bytes activations go to temporary files.
        report: told the share of the work that is done.

    Raises:
        CalibrationError: the model cannot be run over this text, or not backwards.
        CheckpointError: a weight cannot be read, or a file of them changed meanwhile.
        NoSpaceError: the activations do not fit on the disk of temporary files.

    """
    stored = stored_view(checkpoint)
    source = identify_source(stored)
    forward = stand_ready(stored, corpus.context, settings)
    bend = find_bend(forward, corpus.tokens, settings.max_memory, report)
    require_unchanged(stored, source)
    return _by_tensor(checkpoint, model, forward, bend)


def _by_tensor(
    checkpoint: Checkpoint, model: Model, forward: LockstepForward, bend: Bend
) -> dict[str, float]:
    """What was measured by parameter, by the tensors of a GGUF."""
    inputs = Inputs(checkpoint, forward)
    stored = stored_view(checkpoint).tensors
    places = _places(stored, forward, {parameter for parameter, _ in bend.rows})
    found: dict[str, float] = {}
    for target in model.targets:
        if len(target.shape) < 2:
            continue
        losses = [bend.embeddings] if target.name == _EMBEDDINGS else []
        for made_of in inputs.first_rows(target):
            place = next((places[name].at(row) for name, row in made_of if name in places), None)
            if place is not None:
                losses.append(_loss_of(bend, place, target.shape[-2]))
        if losses:
            found[target.name] = sum(losses)
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stored tensor lies in a parameter: from which row of it, or of one of its experts.

    ``expert`` is None where there is only one matrix, or where the tensor has those of all experts,
    of ``rows`` each.
    """

    parameter: str
    expert: int | None
    first: int
    rows: int = 0

    def at(self, row: int) -> tuple[str, int | None, int]:
        """Parameter, expert, and row there, of a row of the stored tensor."""
        if self.rows:
            return self.parameter, row // self.rows, self.first + row % self.rows
        return self.parameter, self.expert, self.first + row


def _places(
    stored: Mapping[str, SourceTensor], forward: LockstepForward, parameters: Iterable[str]
) -> dict[str, _Place]:
    """Where stored tensors lie: those of a parameter one below the other, as far as they do."""
    places = {}
    for parameter in parameters:
        count = forward.n_matrices(parameter)
        first = 0
        for names in forward.parameters.origins[parameter].sources.values():
            are_experts = len(names) == count > 1
            rows = prod(stored[names[0]].shape[:-1])
            of_one = rows if are_experts else rows // count
            for number, name in enumerate(names):
                places[name] = _Place(
                    parameter,
                    number if are_experts else None,
                    first,
                    of_one if count > 1 and not are_experts else 0,
                )
            first += of_one
    return places


def _loss_of(bend: Bend, place: tuple[str, int | None, int], rows: int) -> float:
    """What rows of a parameter cost; where they are not to be told apart, as many like the mean."""
    parameter, expert, first = place
    costs = bend.rows.get((parameter, expert))
    if costs is None:  # an expert that no token goes to
        return 0.0
    if first + rows > len(costs):
        return float(costs.mean()) * rows
    return float(costs[first : first + rows].sum())
