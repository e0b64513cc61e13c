"""The commands that get a variant and run it, as they can be typed."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from quantkit.checkpoint.names import parse_hub_name
from quantkit.core.profiles import load_profile
from quantkit.fitting.model import SizedModel
from quantkit.fitting.placement import Placement
from quantkit.fitting.probe import UBATCH, Curve
from quantkit.fitting.quality import Loss
from quantkit.fitting.variants import Variant

# What runs a model, by its use. Only the server takes several sequences.
_TOOLS = {
    "text": ("llama-server",),
    "embedding": ("llama-server", "--embedding"),
    "encoder-decoder": ("llama-completion",),
    "diffusion": ("llama-diffusion-cli",),
}
_CHECKPOINT = "CHECKPOINT"  # where a config.json alone is known


@dataclass(frozen=True, slots=True)
class Typed:
    """What of a command line goes into others: the model, and what was given beside it."""

    model: str
    imatrix: Path | None = None
    shard_size: str | None = None
    llama_cpp: Path | None = None
    mtp: bool | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """How to come by a variant and run it; ``get`` is empty where its file is here."""

    get: str
    run: str


def steps_to(
    variant: Variant, loss: Loss | None, run: str, subject: SizedModel, typed: Typed, folder: str
) -> Steps:
    """The commands for one variant.

    Args:
        variant: which.
        loss: what it is said to lose, perhaps only with an importance matrix.
        run: what runs it from the folder that its file lies in.
        subject: the model.
        typed: as the user named it.
        folder: where a build puts its files.

    """
    if subject.buildable is not None:
        weighted = variant.needs_imatrix or (loss is not None and loss.weighted)
        get = shlex.join(_build(variant, subject, typed, weighted=weighted))
        return Steps(get, _at(run, variant, f"{folder}/{variant.file_name}"))
    hub = parse_hub_name(typed.model) if subject.origin == "hub" else None
    if hub is not None and hub.file is not None:
        return Steps(
            _download(variant, hub.repo_id, hub.file, hub.revision), _at(run, variant, hub.file)
        )
    return Steps("", _at(run, variant, variant.path or variant.file_name))


def source_words(subject: SizedModel, typed: Typed) -> list[str]:
    """What ``quantkit build`` takes as the model: of a bundled one, its name on the Hub."""
    if subject.origin == "bundled":
        profile = load_profile(f"models/{typed.model.lower()}.toml")
        return [profile["repo"], "--name", subject.title]
    words = [_CHECKPOINT if subject.origin == "config" else typed.model]
    if typed.llama_cpp is not None:
        words += ["--llama-cpp", str(typed.llama_cpp)]
    if typed.mtp is not None:
        words.append("--mtp" if typed.mtp else "--no-mtp")
    return words


def _build(variant: Variant, subject: SizedModel, typed: Typed, *, weighted: bool) -> list[str]:
    words = ["quantkit", "build", *source_words(subject, typed), "-q", variant.name]
    if typed.imatrix is not None:
        words += ["--imatrix", str(typed.imatrix)]
    elif weighted:
        words += ["--imatrix", "auto"]
    if typed.shard_size is not None:
        words += ["--shard-size", typed.shard_size]
    if variant.requantizes:
        words.append("--allow-requantize")
    return words


def _download(variant: Variant, repo: str, file: str, revision: str | None) -> str:
    files = [file]
    if variant.n_files > 1:
        files = ["--include", f"{file.rpartition('-00001-of-')[0]}-*-of-*.gguf"]
    at = ["--revision", revision] if revision else []
    return shlex.join(["hf", "download", repo, *files, *at, "--local-dir", "."])


def _at(run: str, variant: Variant, place: str) -> str:
    """The command with the file where it lies."""
    words = shlex.split(run)
    return shlex.join([place if word == variant.file_name else word for word in words])


def run_command(variant: Variant, placement: Placement, curve: Curve) -> str:
    """What runs a variant with llama.cpp, from the folder that its file lies in."""
    settings = curve.settings
    words = [*_TOOLS[curve.use], "-m", variant.file_name, "-c", str(settings.context)]
    if settings.parallel > 1:
        words[-1] = str(settings.cells * settings.parallel)
    if curve.whole_texts and settings.cells > UBATCH:
        words += ["-b", str(settings.cells), "-ub", str(settings.cells)]
    if words[0] == "llama-server":
        words += ["-np", str(settings.parallel)]
    words += ["-ngl", str(placement.n_gpu_layers)]
    if placement.n_cpu_moe:
        words += ["--n-cpu-moe", str(placement.n_cpu_moe)]
    if sum(1 for count in placement.layers_per_gpu if count) > 1:
        words += ["--tensor-split", ",".join(map(str, placement.layers_per_gpu))]
    words += ["-fa", "on" if settings.flash_attn else "off"]
    if settings.kv_type != "f16":
        words += ["-ctk", settings.kv_type, "-ctv", settings.kv_type]
    return shlex.join(words)
