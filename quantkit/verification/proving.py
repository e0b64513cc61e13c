"""The conversion of a checkpoint is proven once, and its artifacts by what they share with that.

A specimen is built: the same keys and tensors, every weight in float32, of so many of the first
layers as there is room for. If llama.cpp computes with it what the checkpoint does, an artifact
with the same settings, whose tensors are the specimen's but for the rounding of their types, is
the model, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from quantkit.building.output import check_space
from quantkit.checkpoint.checkpoint import Checkpoint, stored_view
from quantkit.checkpoint.converter.describe import describe_alike
from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.shortened import count_layers, fewest_layers, layer_of, shortened
from quantkit.checkpoint.text_config import text_config
from quantkit.core.errors import NoSpaceError, QuantkitError
from quantkit.core.units import format_size
from quantkit.verification.layers import weight_errors
from quantkit.verification.machine import memory, usable_cores
from quantkit.verification.proof import PLAIN, Proof, lacking, length, not_proven, prove
from quantkit.verification.quality import weight_faults
from quantkit.verification.smoke import artifact_files

_SHARE = 2  # of free memory that a specimen may fill: llama.cpp maps it
_WITHOUT_MEMORY = 8 * 2**30  # bytes, where nobody knows how much is free
_SLACK = 0.01  # the limits are of whole matrices of common sizes; those of small ones vary
_NOT_COMPARED = "weights from layer {} on were not compared with the checkpoint's"
_NOT_USED = "weights that these tokens do not use were not compared with the checkpoint's: {}"
# Architectures that llama.cpp computes otherwise for some numbers of layers (src/models/NAME.cpp).
_BY_COUNT = frozenset({"baichuan", "deepseek2", "exaone4", "gemma2", "gemma3"})
_BY_LAYER = ("block_count", "leading_dense_block_count", "nextn_predict_layers")


def prove_conversion(
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    artifact: Path | None = None,
    *,
    threads: int | None = None,
    report: Callable[[float, int], None] = lambda _done, _layers: None,
) -> Proof:
    """Prove that GGUFs made of a checkpoint in this way are the model.

    Args:
        checkpoint: opened, and described where that is needed.
        settings: the metadata that they have.
        artifact: one of them, whose weights are compared as well.
        threads: by default the cores this process may use.
        report: told the layers of the original that are done, of how many.

    Raises:
        CompareError: the artifact does not hold the specimen's tensors.

    """
    stored = stored_view(checkpoint)
    of_layers = count_layers(stored)
    with TemporaryDirectory(prefix="quantkit-proof-") as temporary:
        folder = Path(temporary)
        try:
            layers = _affordable(checkpoint, stored, of_layers)
            part = checkpoint
            if layers < of_layers:
                part = shortened(stored, layers, folder / checkpoint.name)
                part = describe_alike(part, checkpoint)
            specimen = build_specimen(part, folder / "specimen", threads)
        except NoSpaceError:
            size = format_size(_specimen_bytes(checkpoint, stored, layers))
            return not_proven(
                f"There is no room for its specimen of {size} in {gettempdir()}; free some, or set "
                "TMPDIR to a folder on another disk."
            )
        except QuantkitError as error:
            return not_proven(f"No specimen can be made of its first {layers} layers: {error}")
        proof = prove(part, specimen, threads=threads, report=report)
        proof = replace(proof, layers=layers, of_layers=of_layers)
        if proof.outcome == "wrong" and layers < of_layers and _tells_by_count(specimen):
            return not_proven(
                f"llama.cpp tells such models by their number of layers, and the first {layers} of "
                f"{of_layers} are all that there was room for."
            )
        if proof.outcome != "proven":
            return proof
        whole = layers == of_layers
        if artifact is not None and not whole:
            proof = replace(proof, open=(*proof.open, _NOT_COMPARED.format(layers)))
        return _compared(proof, settings, artifact, specimen, whole=whole)


def foresee_proof(checkpoint: Checkpoint) -> str:
    """What `prove_conversion` would do, as a sentence. Reads no weights.

    Args:
        checkpoint: opened, and described where that is needed.

    """
    if missing := lacking():
        return f"Nothing would be proven: {missing}"
    import torch

    from quantkit.calibration.lockstep.forward import LockstepForward

    stored = stored_view(checkpoint)
    of_layers = count_layers(stored)
    n_tokens, unreached = length(text_config(checkpoint.config))
    try:
        LockstepForward(stored, torch.device("cpu"))
    except QuantkitError as error:
        return f"Nothing would be proven: {error}"
    layers = _affordable(checkpoint, stored, of_layers)
    part = f"all {of_layers}" if layers == of_layers else f"the first {layers} of {of_layers}"
    size = format_size(_specimen_bytes(checkpoint, stored, layers))
    text = (
        f"To be proven first: {n_tokens:,} tokens through {part} layers, by transformers and, as "
        f"an F32 specimen of {size}, by llama.cpp."
    )
    return f"{text} Not to be proven: {'; '.join(unreached)}." if unreached else text


def prove_artifact(
    checkpoint: Checkpoint,
    artifact: Path,
    *,
    threads: int | None = None,
    report: Callable[[float, int], None] = lambda _done, _layers: None,
) -> Proof:
    """Prove that a GGUF is the model of a checkpoint.

    One of floats for which there is room is run itself. All are compared with a specimen: a text
    uses few rows of the embeddings, and perhaps not every expert.

    Args:
        checkpoint: opened, and described where that is needed.
        artifact: the GGUF, or its first shard.
        threads: by default the cores this process may use.
        report: told the layers of the original that are done, of how many.

    Raises:
        CompareError: the two do not hold the same tensors.
        GGUFError: the file is not there, or unsound.

    """
    files = artifact_files(artifact)
    headers = [read_header(file) for file in files]
    kinds = {tensor.encoding.name for header in headers for tensor in header.tensors}
    settings = headers[0].metadata
    if not kinds <= PLAIN or sum(file.stat().st_size for file in files) > _room():
        return prove_conversion(checkpoint, settings, artifact, threads=threads, report=report)
    proof = prove(checkpoint, artifact, threads=threads, report=report)
    if proof.outcome != "proven":
        return proof
    with TemporaryDirectory(prefix="quantkit-proof-") as folder:
        try:
            specimen = build_specimen(checkpoint, Path(folder) / "specimen", threads)
        except QuantkitError as error:
            reason = str(error).removesuffix(".")
            return replace(proof, open=(*proof.open, _NOT_USED.format(reason)))
        return _compared(proof, settings, artifact, specimen, whole=True)


def _compared(
    proof: Proof,
    settings: Mapping[str, Any],
    artifact: Path | None,
    specimen: Path,
    *,
    whole: bool,
) -> Proof:
    """A proof that holds for settings, and for the weights of an artifact, too: or what differs."""
    faults = _other_settings(settings, read_header(specimen).metadata, whole=whole)
    if artifact is not None and not faults:
        errors = weight_errors(artifact, specimen, partial=not whole)
        faults = weight_faults(errors, slack=_SLACK, by_row=True)
    return replace(proof, outcome="wrong", reason=f"{'; '.join(faults)}.") if faults else proof


def _room() -> int:
    """Bytes that a specimen may have."""
    free = memory()
    return free.available // _SHARE if free else _WITHOUT_MEMORY


def _affordable(checkpoint: Checkpoint, stored: Checkpoint, of_layers: int) -> int:
    """How many of the first layers a specimen has: all if there is room, at least one per kind."""
    n_bytes = _bytes_in_f32(checkpoint)
    room = _room()
    if n_bytes <= room or not of_layers:
        return of_layers
    fewest = fewest_layers(stored)
    outside = _bytes_outside(stored)
    per_layer = max(1, (n_bytes - outside) // of_layers)
    return min(of_layers, max(fewest, (room - outside) // per_layer))


def _specimen_bytes(checkpoint: Checkpoint, stored: Checkpoint, layers: int) -> int:
    """About how large a specimen of so many layers is."""
    of_layers = max(1, count_layers(stored))
    outside = _bytes_outside(stored)
    return outside + (_bytes_in_f32(checkpoint) - outside) * layers // of_layers


def _bytes_in_f32(checkpoint: Checkpoint) -> int:
    return 4 * sum(tensor.n_elements for tensor in checkpoint.tensors.values())


def _bytes_outside(stored: Checkpoint) -> int:
    """Of the tensors that belong to no layer."""
    return 4 * sum(
        tensor.n_elements for name, tensor in stored.tensors.items() if layer_of(name) is None
    )


def _tells_by_count(specimen: Path) -> bool:
    return read_header(specimen).metadata.get("general.architecture") in _BY_COUNT


def build_specimen(checkpoint: Checkpoint, folder: Path, threads: int | None) -> Path:
    """Build a checkpoint's GGUF with every weight in float32.

    Raises:
        QuantkitError: as a build does; there may be no space.

    """
    from quantkit.building import engine
    from quantkit.building.work import prepare
    from quantkit.planning.quants import find_quants

    # Blocks that were published so become the numbers that they stand for, which is no rounding.
    work = prepare(checkpoint, find_quants(["f32"]))
    check_space(folder.parent, work.n_bytes)
    [artifact] = engine.build(work, folder, jobs=threads or usable_cores(), max_memory=2**30)
    path = artifact.path
    return path if path.is_file() else sorted(path.glob("*.gguf"))[0]


def _other_settings(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, whole: bool
) -> list[str]:
    """Hyperparameters that are not the specimen's."""
    architecture = theirs.get("general.architecture")
    if ours.get("general.architecture") != architecture:
        return [f"it is of the architecture {ours.get('general.architecture')}, not {architecture}"]
    prefix = f"{architecture}."
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if not key.startswith(prefix) or mine == other:
            continue
        if not whole and (key.removeprefix(prefix) in _BY_LAYER or _is_start(other, mine)):
            continue
        found.append(f"its {key} is {mine!r}, of a fresh conversion {other!r}")
    return found


def _is_start(some: Any, whole: Any) -> bool:
    """Whether a list has an entry for each of the first layers, and another for all layers."""
    is_list = isinstance(some, Sequence) and isinstance(whole, Sequence)
    return is_list and not isinstance(some, str) and list(whole[: len(some)]) == list(some)
