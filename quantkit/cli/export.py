"""``quantkit export``: an artifact of transformers' into a GGUF."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.build import VerifyOption
from quantkit.cli.built import show_artifacts
from quantkit.cli.import_ import JobsOption
from quantkit.cli.meters import showing
from quantkit.cli.output import JsonOption, note
from quantkit.core.units import parse_size


class Export(StrEnum):
    """What an artifact can be exported to; anything smaller would round it twice."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


def export(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="What a build made for transformers: gptq-int4, bnb-nf4."
        ),
    ],
    to: Annotated[
        Export, typer.Option("--to", metavar="|".join(Export), help="What the GGUF holds.")
    ] = Export.F16,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Output folder  [default: ./NAME-GGUF]"),
    ] = None,
    jobs: JobsOption = None,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for weights in flight.")
    ] = "1GiB",
    smoke: Annotated[bool, typer.Option("--smoke/--no-smoke", help="Run it in llama.cpp.")] = True,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Dequantize an artifact into a GGUF, slab by slab, and run it in llama.cpp."""
    from quantkit.api.options import CheckOptions, Resources
    from quantkit.api.passes import Passes, finish, run_passes
    from quantkit.api.reporter import reporter
    from quantkit.building.output import require_place
    from quantkit.building.work import prepare_export
    from quantkit.planning.quants import find_quants

    checks, resources = CheckOptions(smoke, verify=verify), Resources(jobs, parse_size(max_memory))
    if out is not None:
        require_place(out)
    work = prepare_export(artifact, find_quants([to.value]))
    folder = out or Path(f"{work.base_name}-GGUF")
    with showing() as progress:
        tell = reporter(progress, note)
        artifacts = run_passes(Passes(work), folder, checks, resources, tell)
        built = finish(
            artifacts,
            folder,
            tell,
            finished=lambda built: show_artifacts(built.artifacts, built.folder, as_json),
        )
    built.raise_if_failed()
