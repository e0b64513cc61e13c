"""`quantkit.smoke`: whether an artifact runs, and is what it should be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.api.checked import require_at_least
from quantkit.api.checks import expect_tokens_of
from quantkit.api.proven import prove_file
from quantkit.api.reporter import Progress, reporter
from quantkit.building.manifest import known_files
from quantkit.checkpoint.open import open_checkpoint
from quantkit.core.errors import CompareError, GGUFError, SmokeError
from quantkit.publishing.hashes import Expected, find_faults
from quantkit.verification.projector import smoke_projector
from quantkit.verification.smoke import SmokeResult
from quantkit.verification.smoke import smoke as run
from quantkit.verification.subjects import (
    artifacts_in,
    export_subject,
    exports_beside,
    is_projector,
    is_quantized_folder,
)

if TYPE_CHECKING:
    from quantkit.verification.compare import Result
    from quantkit.verification.proof import Proof


@dataclass(frozen=True, slots=True)
class Smoked:
    """How an artifact's test ended.

    ``result`` is what llama.cpp did with it. ``is_as_built`` tells whether its files were compared
    with the sha256 in a manifest. ``measured`` are its figures beside a reference, ``proof``
    whether it computes what its checkpoint does; None where that was not asked for, or the artifact
    failed before.
    """

    artifact: Path
    result: SmokeResult
    is_as_built: bool
    measured: "Result | None" = None
    proof: "Proof | None" = None

    @property
    def ok(self) -> bool:
        """Whether it runs, is the model that it should be, and as near to its reference."""
        return self.result.ok and (self.measured is None or self.measured.verdict.ok)

    def raise_if_failed(self) -> None:
        """Turn what is wrong into an error.

        Raises:
            CompareError: it is further from the reference than a sound quant is.
            SmokeError: it does not run, or is not the model.

        """
        if self.measured is not None and not self.measured.verdict.ok:
            raise CompareError(f"{self.artifact}: {self.measured.verdict.reason}")
        if not self.result.ok:
            raise SmokeError(f"{self.artifact}: {self.result.verdict}")

    def as_numbers(self) -> dict[str, Any]:
        """Everything that was found, as JSON values."""
        more = {"compare": self.measured, "proof": self.proof}
        found = {name: asdict(part) for name, part in more.items() if part is not None}
        return asdict(self.result) | found


def smoke(
    artifact: str | Path,
    *,
    threads: int | None = None,
    gpu_layers: int = 0,
    reference: str | Path | None = None,
    checkpoint: str | Path | None = None,
    prove: bool | None = None,
    timeout: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Smoked:
    """Load an artifact in llama.cpp, check it, generate with it, and judge.

    A model that only embeds is given a few texts instead. Where the folder has a manifest, files
    are first compared with its sha256. An artifact that fails is a result and no error; see
    `Smoked.raise_if_failed`.

    Args:
        artifact: a GGUF file, a folder of shards, or one for transformers.
        threads: for llama.cpp; by default the cores this process may use.
        gpu_layers: how many layers llama.cpp puts on a GPU.
        reference: its unquantized GGUF, to measure and judge it against over a short text.
        checkpoint: the folder whose tokens it must produce.
        prove: compare what it computes with what transformers does, layer by layer; by default
            where there is a checkpoint.
        timeout: seconds; by default it grows with the size.
        progress: told how far a proof is, in layers.
        note: told what is done beforehand, and what cannot be compared.

    Raises:
        GGUFError: the artifact is not there, is several, or not what the options are for.
        SmokeError: a file of a folder for transformers is not as it was built.
        CheckpointError: the checkpoint cannot be read, or its tokenizer.
        NativeError: llama.cpp is not installed, or does not run on this machine at all.

    """
    require_at_least(1, threads=threads)
    require_at_least(0, gpu_layers=gpu_layers)
    artifact, tell = Path(artifact), reporter(progress, note)
    opened = open_checkpoint(Path(checkpoint)) if checkpoint is not None else None
    tokens = expect_tokens_of(opened) if opened is not None else None
    with _as_gguf(artifact, tell.note) as (file, built):
        provable = opened is not None and opened.header is None and built is None
        if prove and not provable:
            raise GGUFError(
                "--prove compares a GGUF with the checkpoint that it was converted from; give "
                "both, with --checkpoint FOLDER."
            )
        if opened is not None and opened.header is not None:
            tell.note(
                f"Nothing is compared with {checkpoint}, a GGUF; give the checkpoint that it was "
                "converted from, or use --reference."
            )
        expected = known_files(file) if built is None else {}
        if built is None and file.is_file() and is_projector(file):
            if reference is not None or checkpoint is not None or gpu_layers:
                raise GGUFError(
                    f"{file} is the projector of a model, which gives no tokens and is tested on "
                    "the CPU; leave out --reference, --checkpoint and --gpu-layers."
                )
            result = smoke_projector(file, timeout=timeout, threads=threads, expected=expected)
        else:
            result = run(
                file,
                timeout=timeout,
                threads=threads,
                gpu_layers=gpu_layers,
                expected=expected,
                tokens=tokens,
            )
        measured = proof = None
        if result.ok and reference is not None:
            measured = _measure(file, Path(reference), timeout, threads, gpu_layers)
        if result.ok and opened is not None and provable and prove is not False:
            proof = prove_file(opened, file, threads, tell)
            if proof.outcome == "wrong":
                verdict = f"it is not the model: {proof.reason}"
                result = replace(result, ok=False, verdict=verdict)
        return Smoked(artifact, result, bool(expected or built), measured, proof)


@contextmanager
def _as_gguf(artifact: Path, note: Callable[[str], None]) -> Iterator[tuple[Path, bool | None]]:
    """The GGUF that llama.cpp runs: of a folder its first shard, or an export of its weights.

    An export is gone with the block. With it comes whether the folder's files were compared with a
    manifest; None where it is no export.

    Raises:
        GGUFError: the folder holds no artifact, or several.
        SmokeError: a file of the folder is not as it was built.

    """
    if artifact.is_dir() and not is_quantized_folder(artifact):
        found = artifacts_in(artifact)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise GGUFError(f"{artifact} holds several artifacts; give one of {names}.")
        artifact = found[0]
    if not artifact.is_dir():
        yield artifact, None
        return
    known = known_files(artifact / "config.json")
    faults = find_faults([Expected(artifact / n, n, *file) for n, file in known.items()])
    if faults:
        words = ", ".join(f"{name} ({fault})" for name, fault in faults.items())
        raise SmokeError(f"{artifact} is not as it was built: {words}; build or copy it again.")
    with exports_beside(artifact) as exports:
        note(f"Exporting {artifact.name}, so that llama.cpp can run it")
        yield export_subject(artifact, exports).gguf, bool(known)


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
