"""What comes after a build, as it has to be typed: run, compare, publish."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.output import console, escape, is_quiet

if TYPE_CHECKING:
    from quantkit.building.artifact import Artifact

_UNQUANTIZED = frozenset({"f32", "bf16", "f16", "source"})  # what `compare` can measure against
_USUAL_BITS = 4.8  # per weight: q4_k_m's, which most people run
# What runs a GGUF, by its architecture; llama-cli runs most.
_TOOLS = {"t5": "llama-completion", "dream": "llama-diffusion-cli", "llada": "llama-diffusion-cli"}


def show_next_steps(
    artifacts: "Sequence[Artifact]", folder: Path, source: str, *, published: bool
) -> None:
    """Print what can be done with a build, for people who want to hear it.

    Args:
        artifacts: what was built.
        folder: where.
        source: the model, as it was typed.
        published: whether the build is on the Hub already.

    """
    if is_quiet():
        return
    models = [a for a in artifacts if a.layout.takes is None and a.path.exists()]
    steps = [("run", _run(models, artifacts, folder))] if models else []
    if measured_with := _compare(models, folder, source):
        steps.append(("compare", measured_with))
    if models and not published and all((a.entry.get("smoke") or {}).get("ok") for a in models):
        steps += [("publish", words) for words in _publish(models, folder)]
    if steps:
        console.print("Next:")
    for what, words in steps:
        console.print(f"  {what:<8}{escape(shlex.join(words))}", soft_wrap=True)


def _run(models: "Sequence[Artifact]", artifacts: "Iterable[Artifact]", folder: Path) -> list[str]:
    """What runs the artifact that most people would take; a projector goes with it."""
    files = [one for one in models if one.layout.plan.quant.format == "gguf"]
    best = min(files or models, key=_distance_from_usual)
    place = str(folder / best.layout.opened)
    if not files:
        package = f"quantkit.formats.{best.layout.plan.quant.format}"
        quoted = json.dumps(place, ensure_ascii=False)  # in the other quotes than the shell's
        return ["python", "-ic", f"from {package} import load; model = load({quoted})"]
    entry = best.entry
    if "embeddings" in (entry.get("smoke") or {}).get("details", {}):
        return ["llama-embedding", "-m", place, "-p", "Some text"]
    words = [_TOOLS.get(entry["source"]["family"], "llama-cli"), "-m", place]
    projectors = [one for one in artifacts if one.layout.takes is not None and one.path.exists()]
    if projectors:
        words += ["--mmproj", str(folder / projectors[0].layout.opened)]
    return words


def _distance_from_usual(artifact: "Artifact") -> float:
    """How far its bits per weight are from what most people take."""
    quant = artifact.layout.plan.quant
    named = re.search(r"\d$", quant.name) if quant.format != "gguf" else None
    bits = float(named[0]) if named else artifact.layout.plan.bits_per_weight
    return abs(bits - _USUAL_BITS)


def _compare(models: "Sequence[Artifact]", folder: Path, source: str) -> list[str]:
    """What measures the build; nothing where all of it, or nothing to measure against, is there."""
    from quantkit.building.manifest import sound_entries

    if all(one.layout.plan.quant.name in _UNQUANTIZED for one in models):
        return []
    entries = sound_entries(folder).values()
    there = {entry["quant"] for entry in entries}
    words = ["quantkit", "compare", str(folder)]
    of_gguf = any(
        file["name"].endswith(".gguf") for entry in entries for file in entry["source"]["weights"]
    )
    if there & _UNQUANTIZED or of_gguf:
        return words
    return [*words, "--checkpoint", source] if Path(source).is_dir() else []


def _publish(models: "Sequence[Artifact]", folder: Path) -> list[list[str]]:
    """What publishes the build: a repository holds one format."""
    from quantkit.publishing.layout import PLACEHOLDER

    formats = list(dict.fromkeys(one.layout.plan.quant.format for one in models))
    words = ["quantkit", "publish", str(folder), "--repo", PLACEHOLDER]
    return [[*words, *(["--format", one] if len(formats) > 1 else [])] for one in formats]
