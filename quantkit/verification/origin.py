"""The GGUF that artifacts were made from, where it still is: the best there is to compare with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.building.manifest import is_described, sound_entries
from quantkit.checkpoint.names import shard_names
from quantkit.checkpoint.remote_gguf import cached_gguf
from quantkit.core.errors import CheckpointError, QuantkitError
from quantkit.core.printable import quoted
from quantkit.core.tensors import FLOAT_BYTES
from quantkit.verification.subjects import Subject, open_subject


@dataclass(frozen=True, slots=True)
class Origin:
    """What artifacts were made from: a GGUF, or why that cannot be compared with.

    ``missing`` is the start of a sentence; the fix is the caller's.
    """

    subject: Subject | None
    missing: str = ""


def find_origin(places: Sequence[Path]) -> Origin | None:
    """The GGUF that the artifacts in some places were made from.

    Args:
        places: folders of artifacts, or artifacts.

    Returns:
        None where they were made from a checkpoint, or nothing tells what they were made from.

    Raises:
        OutputError: a manifest is damaged.
        GGUFError: the GGUF is there and not sound.

    """
    for place in places:
        for entry in _entries(place):
            source = entry["source"]
            weights = source["weights"]
            if weights and all(file["name"].endswith(".gguf") for file in weights):
                return _find(source)
    return None


def _entries(place: Path) -> list[dict[str, Any]]:
    """What manifests say of an artifact, or of all artifacts in a folder."""
    if place.is_dir() and (found := sound_entries(place)):
        return list(found.values())
    file = place.absolute()
    for folder in (file.parent, file.parent.parent):
        for name, entry in sound_entries(folder).items():
            if folder / name == file or file in [folder / f["name"] for f in entry["files"]]:
                return [entry]
    return []


def _find(source: Mapping[str, Any]) -> Origin:
    name = source["weights"][0]["name"]
    if source.get("repo_id"):
        place = f"{source['repo_id']}/{name}"
        first = cached_gguf(source["repo_id"], name, source.get("commit"))
        missing = f"The source {quoted(place)} was read from the Hub and is not in its cache"
    else:
        first = Path(source["path"]) if source.get("path") else None
        missing = f"The source {quoted(source.get('path') or name)} is not there any more"
    if first is None or not first.is_file():
        return Origin(None, missing)
    files = shard_names(first)
    try:
        same = len(files) == len(source["weights"]) and all(
            map(is_described, files, source["weights"])
        )
    except CheckpointError:
        return Origin(None, missing)
    if not same:
        return Origin(None, f"The source {quoted(str(first))} is not the one that it was")
    try:
        return Origin(_named(open_subject(first)))
    except QuantkitError as error:
        return Origin(None, str(error).rstrip("."))


def _named(subject: Subject) -> Subject:
    """A source under the name of what it is stored in, where its file type says nothing."""
    from quantkit.checkpoint.open import open_checkpoint

    dtypes = {tensor.dtype for tensor in open_checkpoint(subject.gguf).tensors.values()}
    if subject.quant is not None or not dtypes <= FLOAT_BYTES.keys():
        return subject
    return replace(subject, quant=next(q for q in ("f16", "bf16", "f32") if q.upper() in dtypes))
