"""``quantkit.json``: what a folder's artifacts are and where they came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from quantkit.building.entries import fault_of
from quantkit.building.source import stamp
from quantkit.building.work import Work
from quantkit.checkpoint.checkpoint import Checkpoint, Description
from quantkit.checkpoint.names import files_for_converters
from quantkit.checkpoint.remote import RemoteRepo
from quantkit.checkpoint.tokenizer import tokenizer_files
from quantkit.core.documents import parse_object
from quantkit.core.errors import CheckpointError, OutputError
from quantkit.core.files import has_file, open_file, read_if_there
from quantkit.core.names import resolve
from quantkit.core.version import __version__
from quantkit.core.writing import replace_file
from quantkit.encodings.kernel import is_searched
from quantkit.formats.layout import Layout

NAME = "quantkit.json"
_VERSION = 1
_AWAY = "move it away"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an output folder; an empty one where there is none.

    Its entries may be of another form: `sound_entries` has those that describe something.

    Raises:
        OutputError: it is not one that quantkit wrote.

    """
    path = folder / NAME
    raw = read_if_there(path, error=OutputError, fix=_AWAY)
    if raw is None:
        return {"version": _VERSION, "artifacts": {}}
    manifest = parse_object(raw, path, error=OutputError, fix=_AWAY)
    if manifest.get("version") != _VERSION or not isinstance(manifest.get("artifacts"), dict):
        raise OutputError(f"{path} was not written by this version of quantkit; {_AWAY}.")
    return manifest


def sound_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder's manifest that are as quantkit writes them, by artifact.

    Whatever another one looks like, it makes no file finished, and these stand for themselves.

    Raises:
        OutputError: the manifest is not one that quantkit wrote.

    """
    entries = read_manifest(folder)["artifacts"].items()
    return {name: entry for name, entry in entries if fault_of(name, entry) is None}


def file_of(folder: Path, name: str) -> Path:
    """The file that a manifest's entry names.

    Raises:
        OutputError: it is none of the folder's.

    """
    return resolve(folder, name, folder / NAME, error=OutputError, fix="build it again")


def describe_artifact(
    work: Work,
    layout: Layout,
    files: Sequence[Mapping[str, Any]],
    sources: Mapping[Path, str],
) -> dict[str, Any]:
    """The entry of one artifact: what it is, and everything its bytes depend on.

    Args:
        work: what was built.
        layout: the artifact's.
        files: its files, each with name, bytes and sha256.
        sources: sha256 of each weight file that was read as a whole, as hashed meanwhile.

    """
    checkpoint = work.checkpoint
    return {
        "quant": layout.plan.quant.name,
        "bits_per_weight": round(layout.plan.bits_per_weight, 4),
        "parameters": work.model.n_parameters,
        "plan_sha256": layout.digest,
        "files": list(files),
        "source": {
            "name": checkpoint.name,
            **_describe_repo(checkpoint.repo),
            **_describe_place(checkpoint),
            "family": work.model.family,
            **_describe_description(checkpoint.description),
            "weights": [_describe_weights(checkpoint, file, sources) for file in checkpoint.files],
            "settings": [_describe_file(file) for file in _settings(checkpoint)],
        },
        "quantkit": __version__,
        "kernel": {
            "name": work.kernel.name,
            "version": work.kernel.version,
            "search": _search(work, layout),
        },
        "imatrix": _describe_imatrix(work),
        "remarks": [*work.checkpoint.remarks, *layout.remarks],
        **layout.record,
    }


def _search(work: Work, layout: Layout) -> str:
    """How the scales of an artifact were chosen; the same for all searches in most formats."""
    formats = {tensor.encoding.name for tensor in layout.plan.tensors}
    searched = any(is_searched(name, work.imatrix is not None) for name in formats)
    return work.kernel.search if searched else "ggml"


def _describe_imatrix(work: Work) -> dict[str, str] | None:
    if work.imatrix is None:
        return None
    return {"file": work.imatrix.path.name, "sha256": work.imatrix.sha256}


def _settings(checkpoint: Checkpoint) -> list[Path]:
    """The small files that the metadata was made from; a GGUF has its own in itself."""
    if checkpoint.header is not None:
        return []
    folder = checkpoint.path
    own = [folder / "config.json", folder / "generation_config.json", folder / "README.md"]
    others = files_for_converters(folder) if checkpoint.description is not None else []
    files = dict.fromkeys((*own, *tokenizer_files(folder), *others))
    return [file for file in files if has_file(file, error=CheckpointError)]


def _describe_description(description: Description | None) -> dict[str, Any]:
    """Which converter said what the tensors are, where that was not a family of ours."""
    if description is None:
        return {}
    mtp = {} if description.mtp is None else {"mtp": description.mtp}
    return {"described_by": description.version, **mtp}


def _describe_repo(repo: RemoteRepo | None) -> dict[str, str]:
    """Where on the Hub a checkpoint came from."""
    return {} if repo is None else {"repo_id": repo.repo_id, "commit": repo.commit}


def _describe_place(checkpoint: Checkpoint) -> dict[str, str]:
    """Where a GGUF lies here, which others are compared with; nobody else is told."""
    if checkpoint.header is None or checkpoint.repo is not None:
        return {}
    return {"path": str(checkpoint.path.resolve())}


def _describe_weights(
    checkpoint: Checkpoint, file: Path, sources: Mapping[Path, str]
) -> dict[str, Any]:
    """A weight file: a local one with its time, one of the Hub's with whether we hashed it all.

    Where a resumed build did not read it as a whole, its sha256 is what the Hub says.
    """
    repo = checkpoint.repo
    if repo is None:
        return {**_describe_file(file, sources[file]), "modified_ns": stamp(file)[1]}
    return {
        "name": repo.folder + file.name,
        "bytes": repo.sizes[file.name],
        "sha256": sources.get(file, repo.hashes.get(file.name)),
        "verified": file in sources,
    }


def _describe_file(path: Path, sha256: str | None = None) -> dict[str, Any]:
    size, modified_ns = stamp(path)
    return {"name": path.name, "bytes": size, "sha256": sha256 or _sha256(path, modified_ns)}


def add_artifact(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Record one artifact, atomically and durably, beside those already there."""
    manifest = read_manifest(folder)
    manifest["artifacts"][name] = entry
    text = json.dumps(manifest, indent=2) + "\n"
    replace_file(folder / NAME, text.encode(), folder / f".{NAME}.partial")


def find_finished(
    folder: Path, work: Work, layout: Layout, *, elsewhere: bool = False, hashed: bool = False
) -> str | None:
    """How an artifact of this work that is there was recognized; None where it must be built.

    Its files have the sizes of the manifest, and its times or else its sha256.

    Args:
        folder: the output folder.
        work: what it must be made of.
        layout: the artifact's.
        elsewhere: it does not lie here, and nothing can be compared.
        hashed: compare sha256 in any case.

    Raises:
        OutputError: it was built here, and a file of it is not what was built.

    """
    entry = sound_entries(folder).get(layout.name)
    if (
        entry is None
        or entry["plan_sha256"] != layout.digest
        or entry["imatrix"] != _describe_imatrix(work)
        or entry["kernel"].get("search", "ggml") != _search(work, layout)
        or not _is_source(work.checkpoint, entry["source"])
    ):
        return None
    if elsewhere:
        return "not compared: it lies elsewhere"
    files = [(file_of(folder, file["name"]), file) for file in entry["files"]]
    if not any(path.exists() for path, _ in files):
        return None
    known_times = True
    for path, file in files:
        fault = None
        if not path.is_file():
            fault = "is missing"
        elif path.stat().st_size != file["bytes"]:
            fault = f"has {path.stat().st_size:,} bytes instead of {file['bytes']:,}"
        else:
            modified_ns = path.stat().st_mtime_ns
            known_times &= modified_ns == file.get("modified_ns")
            if (hashed or not known_times) and _hash(path) != file["sha256"]:
                fault = "has another sha256 than when it was built"
        if fault is not None:
            whole = folder / (layout.folder or path.name)
            raise OutputError(
                f"{path} {fault}, so it was changed since; delete {whole} and run the same command "
                "again, which builds it anew."
            )
    return "sha256 as built" if hashed or not known_times else "size and time as built"


def is_planned(folder: Path, layout: Layout) -> bool:
    """Whether an artifact in a folder was built by this very plan, whatever it was made from."""
    entry = sound_entries(folder).get(layout.name, {})
    return bool(entry.get("plan_sha256") == layout.digest)


def _is_source(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's weights are those that an entry describes, as it describes them."""
    repo, weights = checkpoint.repo, entry["weights"]
    describer = _describe_description(checkpoint.description).get("described_by")
    if entry.get("described_by") != describer:
        return False
    if repo is not None and all(
        entry.get(key) == value for key, value in _describe_repo(repo).items()
    ):
        return True
    if len(weights) != len(checkpoint.files):
        return False
    if repo is None:
        return all(map(is_described, checkpoint.files, weights))
    known = [(repo.folder + f.name, repo.hashes.get(f.name)) for f in checkpoint.files]
    return known == [(weight["name"], weight["sha256"] or "unknown") for weight in weights]


def is_described(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a weight file is the one that a manifest describes.

    It is hashed only if its time differs.

    Raises:
        CheckpointError: it is not there.

    """
    size, modified_ns = stamp(path)
    name = entry["name"].rpartition("/")[2]  # on the Hub it may lie in a folder
    if (path.name, size) != (name, entry["bytes"]):
        return False
    if modified_ns == entry.get("modified_ns"):
        return True
    return bool(_sha256(path, modified_ns) == entry["sha256"])


@cache
def _sha256(path: Path, _modified_ns: int) -> str:
    return _hash(path)


def _hash(path: Path) -> str:
    with open_file(path, error=CheckpointError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_files(artifact: Path) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 by file name of what is in an artifact's folder, as its manifest lists them.

    The manifest lies beside the artifact, or one folder up from the shards of a split one.
    Empty where there is none.
    """
    artifact = artifact.absolute()
    for folder in (artifact.parent, artifact.parent.parent):
        known = {
            file_of(folder, file["name"]): (file["bytes"], file["sha256"])
            for entry in sound_entries(folder).values()
            for file in entry["files"]
        }
        if artifact in known:
            return {
                path.name: file for path, file in known.items() if path.parent == artifact.parent
            }
    return {}
