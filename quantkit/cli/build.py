"""``quantkit build``: a checkpoint into quants.

Long because every option of the command is declared here, with what it does.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit.api.budget import BudgetOptions
from quantkit.api.checks import require_loadable
from quantkit.api.chooser import plan_searched
from quantkit.api.projector import layout_of, plan_projector
from quantkit.api.proven import foresee_build
from quantkit.building.output import default_folder
from quantkit.cli.budget import (
    BitsOption,
    BudgetOption,
    ForOption,
    MeasuredOption,
    NoFloorOption,
    TypesOption,
)
from quantkit.cli.built import finish, run_build
from quantkit.cli.calibrate import (
    ChatOption,
    ChunksOption,
    ContextOption,
    Device,
    DeviceOption,
    TextOption,
)
from quantkit.cli.calibrated import (
    GptqWish,
    OnText,
    Published,
    TextOptions,
    as_published,
    computing_threads,
    plan_gptq_quants,
    plan_on_text,
)
from quantkit.cli.cluster import join_cluster
from quantkit.cli.contest import (
    CompareOption,
    CompareTextOption,
    ContestWish,
    clear,
    foresee_candidates,
    refuse_seen,
    settle,
)
from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.gguf_matrix import foresee, gguf_wish, named_folder, plan_on_gguf
from quantkit.cli.hub import fetch, get_ready, keep_in, require_folder
from quantkit.cli.joined import foresee_joined, require_room, write_joined
from quantkit.cli.matrix_first import MatrixFirst
from quantkit.cli.needs import AUTO, BUILD, BuildWish, is_given, refuse_idle
from quantkit.cli.output import JsonOption, note
from quantkit.cli.plans import show_plan
from quantkit.cli.projector import MmprojOption
from quantkit.cli.publication import Publication, plan_publication
from quantkit.core.errors import PlanError
from quantkit.core.units import parse_size

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact
    from quantkit.building.work import Work
    from quantkit.checkpoint.checkpoint import Checkpoint
    from quantkit.checkpoint.imatrix import Imatrix
    from quantkit.formats.folder import FolderLayout


_OF_CALIBRATION = 512  # tokens per sequence
_LIKE_A_RECIPE = "q4_k_m"  # what options do beside, before the model is known

VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Compare the sha256 of what is there already.")
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
            "--quant", "-q", help="What to build, or `ladder`, `publish`, `all`; repeat for more."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Build what quantkit recipe found, too."),
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
        Path | None, typer.Option("--out", "-o", help="Output folder  [default: ./NAME-GGUF]")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that encode or calibrate  [default: all usable cores]"),
    ] = None,
    max_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for weights in flight.")
    ] = "1GiB",
    name: Annotated[
        str | None, typer.Option(help="The model's name, in metadata and file names.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Split files that would be larger.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=TYPE", help="Encode matching tensors as TYPE."),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Encode the output matrix as TYPE.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Encode the token embeddings as TYPE.")
    ] = None,
    imatrix: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Importance matrix; several add up; `auto` makes one."),
    ] = None,
    text: TextOption = None,
    chat: ChatOption = None,
    chunks: ChunksOption = 128,
    context: ContextOption = _OF_CALIBRATION,
    device: DeviceOption = Device.CPU,
    double_quant: Annotated[
        bool, typer.Option("--double-quant/--no-double-quant", help="bnb: scales in 8 bits too.")
    ] = False,
    block_size: Annotated[int, typer.Option(help="bnb 4-bit: weights per scale.")] = 64,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="bnb: a module not to quantize; repeat for more."),
    ] = None,
    group_size: Annotated[
        int, typer.Option(help="GPTQ: weights per scale; -1 for whole rows.")
    ] = 128,
    desc_act: Annotated[
        bool, typer.Option("--desc-act/--no-desc-act", help="GPTQ: strongest inputs first.")
    ] = True,
    symmetric: Annotated[
        bool, typer.Option("--sym/--asym", help="GPTQ: zero in the middle of the levels.")
    ] = True,
    damp: Annotated[float, typer.Option(help="GPTQ: damping, a share of the diagonal.")] = 0.01,
    scale_search: Annotated[
        bool, typer.Option("--scale-search/--no-scale-search", help="GPTQ: try narrower ranges.")
    ] = True,
    kernel: Annotated[
        KernelName, typer.Option(help="Which kernels encode; the bytes are the same.")
    ] = KernelName.FAST,
    search: Annotated[
        SearchName,
        typer.Option(help="K-quants, IQ1 to IQ4: `best` has less error than llama-quantize."),
    ] = SearchName.GGML,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan to the byte and stop.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke/--no-smoke", help="Run every artifact in llama.cpp.")
    ] = True,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="First compare what llama.cpp computes with transformers."),
    ] = False,
    verify: VerifyOption = False,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="Take a GGUF whose weights are quantized."),
    ] = False,
    mtp: MtpOption = None,
    mmproj: MmprojOption = None,
    llama_cpp: LlamaCppOption = None,
    keep_source: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Store a checkpoint from the Hub as it is read."),
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(metavar="NAMESPACE/NAME", help="Publish what was built on the Hub."),
    ] = None,
    delete_published: Annotated[
        bool,
        typer.Option(
            "--delete-published",
            help="With --publish: send each file once it is finished and delete it here.",
        ),
    ] = False,
    max_disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --delete-published: the most disk for its files."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --publish: make the repository private.")
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="With --publish: the license, if the model names none."
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="HUB_ID", help="With --publish: its name there, if it is a folder."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ray://HOST:PORT", help="Build GGUF and bnb on a Ray cluster."
        ),
    ] = None,
    cluster_jobs: Annotated[
        int | None,
        typer.Option(min=1, help="With --cluster: slabs at a time  [default: all processors]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build quants of a model, all of them in one pass over its weights.

    A source on the Hub is read over the network and needs no disk. Stopped or killed, the same
    command goes on where it was.
    """
    from quantkit.building.output import require_place
    from quantkit.building.work import prepare
    from quantkit.calibration.sources import parse_sources
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.imatrix import load_imatrix
    from quantkit.checkpoint.open import (
        find_source,
        is_gguf_source,
        open_once,
        require_checkpoint,
    )
    from quantkit.checkpoint.open import refuse_idle as no_converter
    from quantkit.formats.bnb.codec import BnbOptions
    from quantkit.formats.gptq.plan import GptqOptions
    from quantkit.planning.quants import all_quants, find_quants
    from quantkit.planning.recipe import parse_encoding, parse_override
    from quantkit.verification.machine import usable_cores

    memory = parse_size(max_memory)
    wish = ConverterOptions(llama_cpp, mtp=mtp, say=note)
    run_context = None
    if for_ is not None and is_given(command, "context"):  # of what is to run, not of calibration
        run_context, context = context, _OF_CALIBRATION
    choice = tuple(types or ()), tuple(no_floor or ())
    budgeted = BudgetOptions(budget, bpw, for_, run_context, measured, *choice)
    searches = recipe is not None or budgeted.is_given
    quants = find_quants(quant or ())
    if not quants and not searches:
        raise PlanError(
            "Say what to build: --quant NAME, --recipe FILE, or the best within --budget SIZE, "
            "--bpw BITS or --for 'GPU + RAM'; quantkit quants lists the names."
        )
    overrides = [parse_override(pattern) for pattern in tensor_type or ()]
    output, embedding = (
        parse_encoding(text, option) if text is not None else None
        for text, option in (
            (output_tensor_type, "--output-tensor-type"),
            (token_embedding_type, "--token-embedding-type"),
        )
    )
    of_two = [kind for kind in (output, embedding) if kind is not None]
    matrices = imatrix or []
    auto = AUTO in matrices
    if auto and len(matrices) > 1:
        raise PlanError(
            "--imatrix auto makes one; to add it to others, make it with quantkit calibrate "
            "--continue FILE, and give what that writes."
        )
    asked = BuildWish(
        (*quants, all_quants()[_LIKE_A_RECIPE]) if searches else quants,
        overrides,
        of_two,
        matrices,
        cluster,
        publish,
        delete_published,
        smoke,
        only_searched=searches and all(q.format != "gguf" for q in quants),
        budgeted=budgeted,
        compares=compare,
    )
    refuse_idle(command, BUILD, asked)
    choose = plan_searched(recipe, budgeted, checkpoint, wish)
    sources = parse_sources(text, chat)
    refuse_seen(compare_text, sources)
    publication = plan_publication(
        publish,
        checkpoint,
        asked.quants,
        smoke=smoke,
        license_=license_,
        base_model=base_model,
        deletes=delete_published,
        max_disk=parse_size(max_disk) if max_disk else None,
        private=private,
    )
    most_bytes = parse_size(shard_size) if shard_size else None
    if out is not None and not dry_run:
        require_place(out)
    source = find_source(checkpoint)
    is_gguf = is_gguf_source(source)
    if prove:
        require_checkpoint(
            source, "leave --prove out, or give the checkpoint that it was converted from"
        )
    if is_gguf and auto and device is not Device.CPU:
        raise PlanError("--device is for checkpoints, and llama.cpp runs a GGUF; leave it out.")
    if cluster and isinstance(source, Path):
        source = source.absolute()  # the nodes' processes run elsewhere
    published = None
    if any(chosen.format != "gguf" for chosen in quants):
        require_checkpoint(
            source,
            "only other GGUFs can be made of it, so leave the other quants out, or give the "
            "checkpoint that it was converted from",
        )
        published = as_published(source, quants)
    kept = keep_in(keep_source, source)
    if published is None or asked.has("gguf"):
        source = open_once(source, wish)
    else:
        source = published.checkpoint
        no_converter(wish, checkpoint)
    threads = jobs or usable_cores()
    gptq = GptqWish(
        [chosen for chosen in quants if chosen.format == "gptq"],
        GptqOptions(group_size, desc_act, symmetric, damp),
        scale_search,
        most_bytes,
    )
    slabs = [chosen for chosen in quants if chosen.format != "gptq"]
    # Of a model of no family of ours, in a pass of their own beside GGUFs: see `Published`.
    apart = [q for q in slabs if q.format != "gguf"] if published and asked.has("gguf") else []
    slabs = [chosen for chosen in slabs if chosen not in apart]
    has_slabs = bool(slabs) or choose is not None
    only_gguf = all(chosen.format == "gguf" for chosen in quants)

    def plan(source: "Path | Checkpoint", matrix: "Imatrix | None") -> "Work":
        return prepare(
            source,
            slabs,
            name=name,
            imatrix=matrix,
            overrides=overrides,
            output=output,
            token_embedding=embedding,
            shard_size=most_bytes,
            kernel=kernel.value,
            search=search.value,
            bnb=BnbOptions(block_size, double_quant, tuple(keep or ())),
            kept=kept,
            allow_requantize=allow_requantize,
            choose=choose,
            published=None if published is None or asked.has("gguf") else published.model,
        )

    def plan_apart() -> "Work | None":
        if published is None or not apart:
            return None
        return prepare(
            published.checkpoint,
            apart,
            name=name,
            shard_size=most_bytes,
            kernel=kernel.value,
            bnb=BnbOptions(block_size, double_quant, tuple(keep or ())),
            kept=kept,
            published=published.model,
        )

    contest = ContestWish(
        compare,
        compare_text,
        threads,
        memory,
        smoke,
        name,
        most_bytes,
        has_cluster=cluster is not None,
        taken=frozenset(chosen.name for chosen in slabs if overrides or of_two),
    )
    joined = matrices if len(matrices) > 1 else []
    matrix = load_imatrix(matrices[0]) if len(matrices) == 1 and not auto else None
    if joined or (dry_run and auto):
        folder = out or named_folder(source, name, only_gguf=only_gguf)
        place = folder / "imatrix.gguf"
    if joined:
        matrix = foresee_joined(source, joined, context, place)
    if dry_run:
        if auto:
            matrix = foresee(source, place, sources, chunks)
        work = plan(source, matrix) if has_slabs else None
        part = None
        if work is not None and asked.has("gguf"):
            work, part = plan_projector(work, mmproj and mmproj.value, name)
        if work is not None:
            require_loadable(work, part)
            if prove:
                note(foresee_build(work))
        rivals = []
        if work is not None and choose is not None:
            place = out or default_folder(work.base_name, only_gguf=only_gguf)
            rivals = foresee_candidates(work, choose, contest, place)
        _show_plans(work, plan_apart(), source, gptq, name, as_json, part, published, rivals)
        return

    text_wish = TextOptions(sources, chunks, context, device)

    def plan_text() -> OnText | MatrixFirst:
        if is_gguf:
            wish = gguf_wish(sources, chunks, context, threads=threads)
            return plan_on_gguf(source, wish, name, out)
        return plan_on_text(
            source,
            text_wish,
            name,
            out,
            wants_matrix=auto,
            gptq=gptq,
            only_gguf=only_gguf,
            published=published,
        )

    on_text, work = None, None
    if asked.calibrates:
        if gptq.quants:
            require_folder(source, kept, "GPTQ")
        on_text = plan_text()
        foreseen = plan(source, matrix or on_text.foresee_matrix()) if has_slabs else None
        _refuse_early(on_text, (foreseen, plan_apart()), memory, publication, hashed=verify)
    else:
        work = plan(source, matrix)
    workers = join_cluster(
        command, cluster, cluster_jobs, threads=threads, publishes=publication is not None
    )
    artifacts: list[Artifact] = []
    if on_text is not None:
        if (fetched := fetch(source, kept, wish)) is not source:
            source = fetched
            published = published and published.stored_in(fetched)
            on_text = plan_text()
        out = on_text.folder
        with computing_threads(None if is_gguf else jobs):
            matrix = matrix or on_text.make_matrix()
            if gptq.quants and cluster:
                note("GPTQ needs one layer after the other and stays here.")
            if isinstance(on_text, OnText) and gptq.quants:
                artifacts = on_text.build_gptq(
                    threads=threads, memory=memory, smoke=smoke, hashed=verify
                )
        if not has_slabs:
            finish(artifacts, out, as_json, publication)
            return
        work = plan(source, matrix)
    assert work is not None  # noqa: S101 - there are slabs, for there is no GPTQ alone
    if joined:
        matrix = write_joined(
            joined, context, place, lambda matrix: require_room(plan(source, matrix), folder)
        )
        work = plan(source, matrix)
    place = out or default_folder(work.base_name, only_gguf=only_gguf)
    adopted = None
    if choose is not None:
        if publication is not None:
            publication.begin(work)  # before candidates are built
        work, adopted = settle(work, choose, contest, place)
    part = None
    if asked.has("gguf"):
        work, part = plan_projector(work, mmproj and mmproj.value, name)
    run_build(
        work,
        place,
        threads,
        memory,
        smoke=smoke,
        prove=prove,
        as_json=as_json,
        hashed=verify,
        others=artifacts,
        publication=publication,
        workers=workers,
        projector=part,
        adopted=adopted,
        apart=plan_apart(),
    )
    if choose is not None:
        clear(place)


def _show_plans(
    work: "Work | None",
    apart: "Work | None",
    source: "Path | Checkpoint",
    gptq: GptqWish,
    name: str | None,
    as_json: bool,
    projector: "Work | None",
    published: "Published | None",
    rivals: Sequence[dict[str, Any]],
) -> None:
    """What a dry run shows: of slabs, if there are any, of GPTQ, and of a vision or audio part.

    Beneath it come the candidates that a build would choose from.
    """
    title = ""
    layouts: list[FolderLayout] = []
    if gptq.quants:
        title, layouts = plan_gptq_quants(source, gptq, name, published)
    parts = (work, apart, projector)
    remarks = (remark for part in parts if part is not None for remark in part.remarks)
    for remark in dict.fromkeys(remarks):
        note(remark)
    planned = [layout for part in (work, apart) if part is not None for layout in part.layouts]
    show_plan(
        title or (work.base_name if work else ""),
        (*planned, *layouts),
        as_json,
        layout_of(projector),
        rivals,
    )


def _refuse_early(
    on_text: OnText | MatrixFirst,
    works: "Sequence[Work | None]",
    memory: int,
    publication: Publication | None,
    *,
    hashed: bool,
) -> None:
    """Refuse whatever can be refused before a text is run through the model.

    Args:
        on_text: what is made with the text.
        works: what is built afterwards, planned with a stand-in for the importance matrix.
        memory: bytes of slabs in flight.
        publication: where it all goes.
        hashed: compare sha256 of what is there already.

    """
    from quantkit.building import engine
    from quantkit.building.output import check_space

    needed = on_text.look_ahead(hashed=hashed)
    for work in works:
        if work is None:
            continue
        engine.divide_memory(work.read_ahead, memory)
        guessed = on_text.lacks_matrix
        needed += engine.look_ahead(work, on_text.folder, hashed=hashed, guessed=guessed)
        get_ready(work, on_text.folder, memory, smoke=False)
    check_space(on_text.folder, needed)
    if publication is None:
        return
    if (work := works[0]) is not None:  # what is published is all of one format
        publication.begin(work)
    elif isinstance(on_text, OnText):
        names = [build.layout.name for build in on_text.builds]
        publication.refuse_folders(on_text.checkpoint, names)
