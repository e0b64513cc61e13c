"""``quantkit smoke``: whether an artifact runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.cli.checks import expect_tokens_of
from quantkit.cli.output import JsonOption, console, emit_json, escape
from quantkit.core.errors import CompareError, SmokeError

if TYPE_CHECKING:
    from quantkit.verify.compare import Result


def smoke(
    artifact: Annotated[Path, typer.Argument(help="A GGUF file, or the first shard of several.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads  [default: all]")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its unquantized GGUF, to measure and judge against."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Its checkpoint, whose tokens it must give."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds  [default: grows with the size]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load an artifact in llama.cpp, check it, generate with it, and judge.

    Where the folder has a manifest (quantkit.json), the file is first compared with its sha256.
    With --checkpoint its tokens are compared with those of the checkpoint's own tokenizer, as a
    build does. With --reference it is also measured over a short text, as quantkit compare does.
    """
    from quantkit.build.manifest import known_sha256
    from quantkit.checkpoint.folder import open_checkpoint
    from quantkit.checkpoint.tokenizer.deviations import describe_tokens
    from quantkit.verify.smoke import smoke as run_smoke

    expected = known_sha256(artifact)
    tokens = expect_tokens_of(open_checkpoint(checkpoint)) if checkpoint else None
    result = run_smoke(artifact, timeout=timeout, threads=threads, expected=expected, tokens=tokens)
    measured = None
    if result.ok and reference is not None:
        measured = _measure(artifact, reference, timeout, threads)
    if as_json:
        emit_json(asdict(result) | ({"compare": asdict(measured)} if measured else {}))
    elif result.ok:
        checked = "sha256 as built, " if expected else ""
        speed = f"{result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
        console.print(f"[green]passed[/]: {escape(artifact.name)} ({checked}{speed})")
        console.print(escape(f"It said: {result.text!r}"))
        if tokens:
            console.print(escape(describe_tokens(result.details["tokens"])), soft_wrap=True)
        if measured is not None and measured.measures is not None:
            m = measured.measures
            console.print(
                f"Against {escape(reference.name if reference else '')}: mean KLD {m.kld:.5f}, "
                f"same top token {m.same_top:.1%}: {escape(measured.verdict.reason)}",
                soft_wrap=True,
            )
    if measured is not None and not measured.verdict.ok:
        raise CompareError(f"{artifact}: {measured.verdict.reason}")
    if not result.ok:
        raise SmokeError(f"{artifact}: {result.verdict}")


def _measure(
    artifact: Path, reference: Path, timeout: float | None, threads: int | None
) -> "Result":
    from quantkit.verify.compare import compare
    from quantkit.verify.subjects import open_subject

    found = compare(
        [open_subject(artifact)], open_subject(reference), timeout=timeout, threads=threads
    )
    return found.results[-1]
