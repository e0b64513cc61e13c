"""``quantkit smoke``: whether an artifact runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from quantkit.cli.output import JsonOption, console, emit_json
from quantkit.core.errors import SmokeError


def smoke(
    artifact: Annotated[Path, typer.Argument(help="A GGUF file, or the first shard of several.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads  [default: all]")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds  [default: grows with the size]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load an artifact in llama.cpp, check it, generate with it, and judge.

    Where the folder has a manifest (quantkit.json), the file is first compared with its sha256.
    """
    from quantkit.build.manifest import known_sha256
    from quantkit.verify.smoke import smoke as run_smoke

    expected = known_sha256(artifact)
    result = run_smoke(artifact, timeout=timeout, threads=threads, expected=expected)
    if as_json:
        emit_json(asdict(result))
    elif result.ok:
        checked = "sha256 as built, " if expected else ""
        speed = f"{result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
        console.print(f"[green]passed[/]: {escape(artifact.name)} ({checked}{speed})")
        console.print(escape(f"It said: {result.text!r}"))
    if not result.ok:
        raise SmokeError(f"{artifact}: {result.verdict}")
