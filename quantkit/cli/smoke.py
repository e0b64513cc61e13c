"""``quantkit smoke``: whether an artifact runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.meters import showing
from quantkit.cli.output import (
    GpuLayersOption,
    JsonOption,
    ThreadsOption,
    console,
    emit_json,
    escape,
    note,
)
from quantkit.cli.panels import CHECKS

if TYPE_CHECKING:
    from quantkit.api.smoke import Smoked
    from quantkit.verification.compare import Result
    from quantkit.verification.smoke import SmokeResult


def smoke(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT", help="A GGUF file, a folder of shards, or one for transformers."
        ),
    ],
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = 0,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=CHECKS,
            help="Its unquantized GGUF, to measure and judge against.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=CHECKS,
            help="The checkpoint whose tokens it must produce.",
        ),
    ] = None,
    prove: Annotated[
        bool | None,
        typer.Option(
            "--prove/--no-prove",
            rich_help_panel=CHECKS,
            help="With --checkpoint: it must compute what transformers does.  [default: --prove]",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="SECONDS", help="For all of it  [default: grows with the size]"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load an artifact in llama.cpp, check it, generate with it, and judge.

    A model that only embeds is given a few texts instead.

    Where the folder has a manifest (quantkit.json), the file is first compared with its sha256.
    With --checkpoint its tokens are compared with those of the checkpoint's own tokenizer, as a
    build does, and what it computes with what transformers does, layer by layer; large models by
    their first layers. With --reference it is also measured over a short text, as quantkit compare
    does.
    """
    from quantkit.api.smoke import smoke as run

    with showing() as progress:
        found = run(
            artifact,
            threads=threads,
            gpu_layers=gpu_layers,
            reference=reference,
            checkpoint=checkpoint,
            prove=prove,
            timeout=timeout,
            progress=progress,
            note=note,
        )
    if as_json:
        emit_json(found.as_numbers())
    elif found.result.ok:
        _show(found, reference.name if reference else "")
    found.raise_if_failed()


def _show(found: "Smoked", reference: str) -> None:
    from quantkit.checkpoint.tokenizer.deviations import describe_tokens
    from quantkit.verification.proof import describe_proof
    from quantkit.verification.smoke import NOT_COMPARED

    ran = found.result
    checked = "sha256 as built, " if found.is_as_built else ""
    speed = f"{ran.tokens_per_second:,.0f} tokens/s" if ran.tokens_per_second else "ran"
    colour = "yellow" if ran.verdict == NOT_COMPARED else "green"
    name = escape(found.artifact.name)
    console.print(f"[{colour}]{ran.verdict}[/]: {name} ({checked}{speed})")
    console.print(escape(_outcome(ran)))
    if tokens := ran.details.get("tokens"):
        console.print(escape(describe_tokens(tokens)), soft_wrap=True)
    if found.proof is not None:
        console.print(escape(describe_proof(found.proof.as_numbers())), soft_wrap=True)
    if found.measured is not None and (how := _distance(found.measured)):
        reason = escape(found.measured.verdict.reason)
        console.print(f"Against {escape(reference)}: {how}: {reason}", soft_wrap=True)


def _distance(measured: "Result") -> str:
    """How far a model is from its reference."""
    if (c := measured.cosines) is not None:
        return f"cosine of embeddings {c.mean:.5f}, at worst {c.worst:.5f}"
    if (m := measured.measures) is not None:
        return f"mean KLD {m.kld:.5f}, same top token {m.same_top:.1%}"
    return ""


def _outcome(result: "SmokeResult") -> str:
    """What a model that passed did."""
    if "takes" in result.details:
        return f"As a projector it takes {' and '.join(result.details['takes'])}."
    made = result.details.get("embeddings")
    if made is None:
        return f"It said: {result.text!r}"
    return (
        f"It embedded {made['texts']} texts in {made['numbers']:,} numbers each "
        f"(pooling: {made['pooling']}); it does not generate."
    )
