"""``quantkit densify``: a mixture of experts into a dense model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.api.needs import refuse_idle
from quantkit.cli.calibrate import (
    ChatOption,
    ChunksOption,
    ContextOption,
    Device,
    DeviceOption,
    TextOption,
)
from quantkit.cli.import_ import JobsOption, MemoryOption, OutOption, ShardOption, write
from quantkit.cli.meters import open_meter
from quantkit.cli.needs import DENSIFY, DensifyWish, typed
from quantkit.cli.output import JsonOption, note
from quantkit.core.errors import PlanError
from quantkit.core.units import parse_size

if TYPE_CHECKING:
    from quantkit.calibration.densify import Merged
    from quantkit.calibration.settings import Step
    from quantkit.calibration.sources import TextSource
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.families.model import Decoder


class Merge(StrEnum):
    """What becomes of the experts of a layer."""

    LINEAR = "linear"
    ROUTED = "routed"
    FIT = "fit"


def densify(
    command: typer.Context,
    checkpoint: Annotated[
        str, typer.Argument(metavar="MODEL", help="A Mixtral: a folder, or a name on the Hub.")
    ],
    out: OutOption,
    expert: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Keep this one alone, counted from 0.")
    ] = None,
    merge: Annotated[
        Merge | None, typer.Option(metavar="|".join(Merge), help="Make one of all.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W,...", help="linear: a weight per expert  [default: all alike]"),
    ] = None,
    text: TextOption = None,
    chat: ChatOption = None,
    chunks: ChunksOption = 128,
    context: ContextOption = 512,
    rounds: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="fit: rounds of least squares, 0 for the quickest."),
    ] = 2,
    device: DeviceOption = Device.CPU,
    shard_size: ShardOption = None,
    jobs: JobsOption = None,
    max_memory: MemoryOption = "256MiB",
    as_json: JsonOption = False,
) -> None:
    """Make a dense Mistral from a Mixtral: one expert alone, or all of them merged.

    `linear` is their mean, `routed` a mean by how much the router uses each on a text, `fit` the
    dense part that does on a text what the experts do. Everything but the experts and their router
    is taken over byte for byte.
    """
    from quantkit.building.output import check_space
    from quantkit.building.rewrite import look_ahead, require_free
    from quantkit.calibration.sources import parse_sources
    from quantkit.checkpoint.densified import densified, require_experts
    from quantkit.formats.merge_card import write_merge_card

    if (expert is None) == (merge is None):
        raise PlanError("Say what to make of the experts: --expert N, or --merge linear.")
    wish = DensifyWish(merge.value if merge else None)
    refuse_idle(typed(command), DENSIFY, wish)
    require_free(out)
    sources = parse_sources(text, chat)
    memory, most_bytes = parse_size(max_memory), parse_size(shard_size) if shard_size else None
    source, model = open_source(checkpoint, "quantkit densify works on Mixtral checkpoints only")
    require_experts(source, model)
    experts, layers = model.hparams.num_local_experts, model.hparams.num_hidden_layers

    def finish(
        dense: "Checkpoint", dense_model: "Decoder", how: str, recipe: dict[str, Any]
    ) -> None:
        card = write_merge_card(out.absolute().name, source, model, dense_model, how)
        write(dense, dense_model, out, recipe, card, most_bytes, jobs, memory, as_json)

    if wish.runs:
        # A merge by weights has the names and shapes of any other.
        like = densified(source, model, [[1.0] * experts] * layers)
        needed = look_ahead(*like, out, max_memory=memory, shard_size=most_bytes)
        check_space(out.absolute().parent, needed)
        on_text = _on_text(
            source, model, out, merge, sources, chunks, context, rounds, device, needed
        )
        with on_text as (made, how):
            finish(made.checkpoint, made.model, how, {"merge": made.identity})
        return
    if expert is not None:
        if expert >= experts:
            raise PlanError(f"There is no --expert {expert}: they count from 0 to {experts - 1}.")
        shares = [float(number == expert) for number in range(experts)]
        how = f"Every layer keeps expert {expert} alone."
    else:
        shares = _parse_weights(weights) if weights else [1.0] * experts
        how = f"Every layer has the mean of its {experts} experts"
        how += f", by the weights {', '.join(f'{w:g}' for w in shares)}." if weights else "."
    finish(*densified(source, model, [shares] * layers), how, {"weights": shares})


@contextmanager
def _on_text(
    source: "Checkpoint",
    model: "Decoder",
    out: Path,
    merge: Merge | None,
    sources: "Sequence[TextSource]",
    chunks: int,
    context: int,
    rounds: int,
    device: Device,
    needed: int,
) -> "Iterator[tuple[Merged, str]]":
    """The dense model that a text makes, and a sentence on it; ``needed`` bytes it will take."""
    from quantkit.api.running import remarks_on, require_running

    require_running("calibrate", f"--merge {merge}")
    from quantkit.calibration.densify import merged
    from quantkit.calibration.settings import Settings
    from quantkit.calibration.text import make_corpus

    corpus = make_corpus(source, sources, chunks, context)
    for remark in remarks_on(corpus, chunks):
        note(remark)
    meter = open_meter("layer")

    def report(step: "Step") -> None:
        rate = f"{step.tokens_per_second:,.0f} tokens/s"
        meter.show("Merging", step.layers, step.n_layers, rate)

    fits = merge is Merge.FIT
    how = (
        "Every layer is fitted by least squares to what its experts do, each on what the layers "
        "before make of the text"
        if fits
        else "Every layer has the mean of its experts, by how often and how strongly the router "
        "picks them"
    )
    how += f": {corpus.tokens.size:,} tokens of {', '.join(Path(n).name for n in corpus.names)}."
    folder = out.absolute().with_name(f"{out.absolute().name}.merge.partial")
    with merged(
        source,
        model,
        corpus,
        Settings(device.value),
        folder,
        rounds=rounds if fits else None,
        beside=needed,
        report=report,
        say=note,
    ) as made:
        meter.close()
        yield made, how


def open_source(name: str, fix: str) -> "tuple[Checkpoint, Decoder]":
    """A checkpoint in a folder or on the Hub, and the model that it makes.

    ``fix`` says what to do with a model whose layers quantkit does not compute.
    """
    from quantkit.api.running import open_noted
    from quantkit.checkpoint.hub_rows import with_rows
    from quantkit.checkpoint.open import find_source

    source = find_source(name)
    return open_noted(source if isinstance(source, Path) else with_rows(source), fix, note)


def _parse_weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(
            f"--weights {text!r} must be numbers with commas between them, such as 1,1,2,1."
        ) from None
