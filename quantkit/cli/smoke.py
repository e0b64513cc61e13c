"""``quantkit smoke``: whether an artifact runs."""

import atexit
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit.api.checks import expect_tokens_of
from quantkit.api.proven import prove_file
from quantkit.api.reporter import Reporter
from quantkit.cli.output import (
    GpuLayersOption,
    JsonOption,
    console,
    emit_json,
    escape,
    note,
    open_meter,
)
from quantkit.core.errors import CompareError, GGUFError, SmokeError

if TYPE_CHECKING:
    from quantkit.verification.compare import Result
    from quantkit.verification.smoke import SmokeResult


def smoke(
    artifact: Annotated[
        Path, typer.Argument(help="A GGUF file, a folder of shards, or one for transformers.")
    ],
    threads: Annotated[int | None, typer.Option(min=1, help="Threads  [default: all]")] = None,
    gpu_layers: GpuLayersOption = 0,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its unquantized GGUF, to measure and judge against."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The checkpoint whose tokens it must produce."),
    ] = None,
    prove: Annotated[
        bool | None,
        typer.Option(
            "--prove/--no-prove",
            help="With --checkpoint: it must compute what transformers does.  [default: prove]",
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds  [default: grows with the size]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load an artifact in llama.cpp, check it, generate with it, and judge.

    A model that only embeds, embeds a few texts instead.

    Where the folder has a manifest (quantkit.json), the file is first compared with its sha256.
    With --checkpoint its tokens are compared with those of the checkpoint's own tokenizer, as a
    build does, and what it computes with what transformers does, layer by layer; large models by
    their first layers. With --reference it is also measured over a short text, as quantkit compare
    does.
    """
    from quantkit.building.manifest import known_files
    from quantkit.checkpoint.open import open_checkpoint
    from quantkit.checkpoint.tokenizer.deviations import describe_tokens
    from quantkit.verification.projector import smoke_projector
    from quantkit.verification.proof import describe_proof
    from quantkit.verification.smoke import smoke as run_smoke
    from quantkit.verification.subjects import is_projector

    opened = open_checkpoint(checkpoint) if checkpoint else None
    tokens = expect_tokens_of(opened) if opened else None
    file, built = _as_gguf(artifact)
    provable = opened is not None and opened.header is None and built is None
    if prove and not provable:
        raise GGUFError(
            "--prove compares a GGUF with the checkpoint that it was converted from; give both, "
            "with --checkpoint FOLDER."
        )
    if opened is not None and opened.header is not None:
        note(
            f"Nothing is compared with {checkpoint}, a GGUF; give the checkpoint that it was "
            "converted from, or use --reference."
        )
    expected = known_files(file) if built is None else {}
    if built is None and file.is_file() and is_projector(file):
        if reference is not None or checkpoint is not None or gpu_layers:
            raise GGUFError(
                f"{file} is the projector of a model, which gives no tokens and is tested on the "
                "CPU; leave out --reference, --checkpoint and --gpu-layers."
            )
        result = smoke_projector(file, timeout=timeout, threads=threads, expected=expected)
    else:
        result = run_smoke(
            file,
            timeout=timeout,
            threads=threads,
            gpu_layers=gpu_layers,
            expected=expected,
            tokens=tokens,
        )
    measured = None
    if result.ok and reference is not None:
        measured = _measure(file, reference, timeout, threads, gpu_layers)
    proof = None
    if result.ok and opened is not None and provable and prove is not False:
        proof = prove_file(opened, file, threads, Reporter(note, open_meter))
        if proof.outcome == "wrong":
            verdict = f"it is not the model: {proof.reason}"
            result = replace(result, ok=False, verdict=verdict)
    if built is not None:
        shutil.rmtree(file.parents[1], ignore_errors=True)
    if as_json:
        more = {"compare": measured and asdict(measured), "proof": proof and asdict(proof)}
        emit_json(asdict(result) | {key: value for key, value in more.items() if value})
    elif result.ok:
        checked = "sha256 as built, " if expected or built else ""
        speed = f"{result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else "ran"
        colour = "yellow" if tokens and tokens.lacking else "green"
        console.print(f"[{colour}]{result.verdict}[/]: {escape(artifact.name)} ({checked}{speed})")
        console.print(escape(_outcome(result)))
        if tokens:
            console.print(escape(describe_tokens(result.details["tokens"])), soft_wrap=True)
        if proof is not None:
            console.print(escape(describe_proof(asdict(proof))), soft_wrap=True)
        if measured is not None and measured.cosines is not None:
            c = measured.cosines
            console.print(
                f"Against {escape(reference.name if reference else '')}: cosine of embeddings "
                f"{c.mean:.5f}, at worst {c.worst:.5f}: {escape(measured.verdict.reason)}",
                soft_wrap=True,
            )
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


def _as_gguf(artifact: Path) -> tuple[Path, bool | None]:
    """The GGUF that llama.cpp runs: of a folder its first shard, or an export of its weights.

    An export lies in a folder of its own beside the artifact's, where there is room for it. With
    it comes whether the folder's files were compared with a manifest; None where it is no export.

    Raises:
        GGUFError: the folder holds no artifact, or several.
        SmokeError: a file of the folder is not as it was built.

    """
    from quantkit.building.manifest import known_files
    from quantkit.publishing.hashes import Expected, find_faults
    from quantkit.verification.subjects import artifacts_in, export_subject, is_quantized_folder

    if not artifact.is_dir():
        return artifact, None
    if not is_quantized_folder(artifact):
        found = artifacts_in(artifact)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise GGUFError(f"{artifact} holds several artifacts; give one of {names}.")
        return _as_gguf(found[0])
    known = known_files(artifact / "config.json")
    faults = find_faults([Expected(artifact / n, n, *file) for n, file in known.items()])
    if faults:
        words = ", ".join(f"{name} ({fault})" for name, fault in faults.items())
        raise SmokeError(f"{artifact} is not as it was built: {words}; build or copy it again.")
    exports = artifact.absolute().with_name(f".quantkit-exports-{os.getpid()}")
    atexit.register(shutil.rmtree, exports, ignore_errors=True)
    note(f"Exporting {artifact.name}, for llama.cpp to run it")
    return export_subject(artifact, exports).gguf, bool(known)


def _measure(
    artifact: Path,
    reference: Path,
    timeout: float | None,
    threads: int | None,
    gpu_layers: int,
) -> "Result":
    from quantkit.verification.compare import compare
    from quantkit.verification.subjects import open_subject

    found = compare(
        [open_subject(artifact)],
        open_subject(reference),
        timeout=timeout,
        threads=threads,
        gpu_layers=gpu_layers,
    )
    return found.results[-1]
