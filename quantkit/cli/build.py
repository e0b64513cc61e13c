"""``quantkit build``: a checkpoint into quants.

Long because every option of the command is declared here, with what it does.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.budget import (
    BitsOption,
    BudgetOption,
    ForOption,
    MeasuredOption,
    NoFloorOption,
    TypesOption,
)
from quantkit.cli.built import show_artifacts
from quantkit.cli.calibrate import (
    ChatOption,
    ChunksOption,
    ContextOption,
    Device,
    DeviceOption,
    TextOption,
)
from quantkit.cli.completion import complete_quant
from quantkit.cli.contest import CompareOption, CompareTextOption
from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.meters import showing
from quantkit.cli.needs import typed
from quantkit.cli.next_steps import show_next_steps
from quantkit.cli.output import JsonOption, note
from quantkit.cli.panels import BNB, BUDGET, CHECKS, CLUSTER, GPTQ, HUB, QUALITY, SOURCE
from quantkit.cli.plans import show_plan
from quantkit.cli.projector import MmprojOption
from quantkit.core.units import parse_size

_OF_CALIBRATION = 512  # tokens per sequence

VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify", rich_help_panel=CHECKS, help="Compare the sha256 of what already exists."
    ),
]


class KernelName(StrEnum):
    """The names of ``encodings.kernel.KERNELS``, which are not imported to parse options."""

    FAST = "fast"
    GGML = "ggml"


class SearchName(StrEnum):
    """How K-quants, and IQ1 to IQ4 with importance, are searched."""

    GGML = "ggml"
    BEST = "best"


def build(
    command: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face checkpoint folder, a GGUF, or HUB_ID[/FILE.gguf][@REVISION].",
        ),
    ],
    quant: Annotated[
        list[str] | None,
        typer.Option(
            "--quant",
            "-q",
            metavar="NAME",
            autocompletion=complete_quant,
            help="What to build, or `ladder`, `publish`, `all`; repeat for more.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", rich_help_panel=BUDGET, help="Build what quantkit recipe found."
        ),
    ] = None,
    budget: BudgetOption = None,
    bpw: BitsOption = None,
    for_: ForOption = None,
    measured: MeasuredOption = None,
    types: TypesOption = None,
    no_floor: NoFloorOption = None,
    compare: CompareOption = None,
    compare_text: CompareTextOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Output folder  [default: ./NAME-GGUF]"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Threads that encode or calibrate  [default: all usable cores]",
        ),
    ] = None,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for weights in flight.")
    ] = "1GiB",
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model's name, in metadata and file names."),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split files that would be larger.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            rich_help_panel=QUALITY,
            help="Encode matching tensors as TYPE; repeat for more.",
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", rich_help_panel=QUALITY, help="Encode the output matrix as TYPE."
        ),
    ] = None,
    token_embedding_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", rich_help_panel=QUALITY, help="Encode the token embeddings as TYPE."
        ),
    ] = None,
    imatrix: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=QUALITY,
            help="Importance matrix; several add up; `auto` makes one.",
        ),
    ] = None,
    text: TextOption = None,
    chat: ChatOption = None,
    chunks: ChunksOption = 128,
    context: ContextOption = _OF_CALIBRATION,
    device: DeviceOption = Device.CPU,
    double_quant: Annotated[
        bool,
        typer.Option(
            "--double-quant/--no-double-quant",
            rich_help_panel=BNB,
            help="4 bits: scales in 8 bits, too.",
        ),
    ] = False,
    block_size: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=BNB, help="4 bits: weights per scale."),
    ] = 64,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE",
            rich_help_panel=BNB,
            help="A module not to quantize; repeat for more.",
        ),
    ] = None,
    group_size: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=GPTQ, help="Weights per scale; -1 for whole rows."
        ),
    ] = 128,
    desc_act: Annotated[
        bool,
        typer.Option(
            "--desc-act/--no-desc-act", rich_help_panel=GPTQ, help="Strongest inputs first."
        ),
    ] = True,
    symmetric: Annotated[
        bool,
        typer.Option(
            "--sym/--asym", rich_help_panel=GPTQ, help="Zero in the middle of the levels."
        ),
    ] = True,
    damp: Annotated[
        float,
        typer.Option(
            metavar="SHARE", rich_help_panel=GPTQ, help="Damping, a share of the diagonal."
        ),
    ] = 0.01,
    scale_search: Annotated[
        bool,
        typer.Option(
            "--scale-search/--no-scale-search", rich_help_panel=GPTQ, help="Try narrower ranges."
        ),
    ] = True,
    kernel: Annotated[
        KernelName,
        typer.Option(
            metavar="|".join(KernelName),
            rich_help_panel=QUALITY,
            help="Which kernels encode; the bytes are the same.",
        ),
    ] = KernelName.FAST,
    search: Annotated[
        SearchName,
        typer.Option(
            metavar="|".join(SearchName),
            rich_help_panel=QUALITY,
            help="K-quants, IQ1 to IQ4: `best` has less error than llama-quantize.",
        ),
    ] = SearchName.GGML,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan to the byte and stop.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke/--no-smoke", rich_help_panel=CHECKS, help="Run every artifact in llama.cpp."
        ),
    ] = True,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            rich_help_panel=CHECKS,
            help="First compare what llama.cpp computes with transformers.",
        ),
    ] = False,
    verify: VerifyOption = False,
    allow_requantize: Annotated[
        bool,
        typer.Option(
            "--allow-requantize",
            rich_help_panel=SOURCE,
            help="Take a GGUF whose weights are quantized.",
        ),
    ] = False,
    mtp: MtpOption = None,
    mmproj: MmprojOption = None,
    llama_cpp: LlamaCppOption = None,
    keep_source: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=HUB,
            help="Store a checkpoint from the Hub as it is read.",
        ),
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/NAME",
            rich_help_panel=HUB,
            help="Publish what was built on the Hub.",
        ),
    ] = None,
    delete_published: Annotated[
        bool,
        typer.Option(
            "--delete-published",
            rich_help_panel=HUB,
            help="With --publish: send each file once it is finished and delete it here.",
        ),
    ] = False,
    max_disk: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=HUB,
            help="With --delete-published: the most disk for its files.",
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            rich_help_panel=HUB,
            help="With --publish: make the repository private.",
        ),
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            rich_help_panel=HUB,
            help="With --publish: the license, if the model names none.",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID",
            rich_help_panel=HUB,
            help="With --publish: its name there, if it is a folder.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ray://HOST:PORT",
            rich_help_panel=CLUSTER,
            help="Build GGUF and bnb on a Ray cluster.",
        ),
    ] = None,
    cluster_jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=CLUSTER,
            help="With --cluster: slabs at a time  [default: all processors]",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build quants of a model, all of them in one pass over its weights.

    A source on the Hub is read over the network and needs no disk. Stopped or killed, the same
    command goes on where it was.
    """
    from quantkit.api import build as api
    from quantkit.api import options as of

    given = typed(command)
    run_context = None
    if for_ is not None and "context" in given:  # of what is to run, not of calibration
        run_context, context = context, _OF_CALIBRATION
    choice = tuple(types or ()), tuple(no_floor or ())
    options = of.BuildOptions(
        of.FileOptions(name, parse_size(shard_size) if shard_size else None),
        of.EncodingOptions(
            kernel.value,
            search.value,
            tuple(tensor_type or ()),
            output_tensor_type,
            token_embedding_type,
            tuple(imatrix or ()),
            mmproj.value if mmproj else None,
            allow_requantize,
        ),
        of.TextOptions(tuple(text or ()), tuple(chat or ()), chunks, context, device.value),
        of.GptqOptions(group_size, desc_act, symmetric, damp, scale_search),
        of.BnbOptions(block_size, double_quant, tuple(keep or ())),
        recipe,
        of.BudgetOptions(budget, bpw, for_, run_context, measured, *choice),
        of.ContestOptions(compare, compare_text),
        of.CheckOptions(smoke, prove, verify),
        of.PublicationOptions(
            publish,
            delete_published,
            parse_size(max_disk) if max_disk else None,
            private,
            license_,
            base_model,
        ),
        of.Resources(jobs, parse_size(max_memory), keep_source, cluster, cluster_jobs),
        of.ConverterOptions(llama_cpp, mtp=mtp),
    )
    quants = quant or ()
    if dry_run:
        show_plan(api.plan(checkpoint, quants, options, out=out, note=note, given=given), as_json)
        return
    with showing() as progress:
        built = api.build(
            checkpoint,
            quants,
            options,
            out=out,
            progress=progress,
            note=note,
            finished=lambda built: show_artifacts(built.artifacts, built.folder, as_json),
            given=given,
        )
    built.raise_if_failed()
    if not as_json:
        show_next_steps(built.artifacts, built.folder, checkpoint, published=publish is not None)
