"""``quantkit.json``: what a folder's artifacts are and where they came from."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import quantkit
from quantkit.build.output import Layout, sync_folder
from quantkit.build.source import stamp
from quantkit.build.work import Work
from quantkit.checkpoint.folder import Checkpoint
from quantkit.checkpoint.remote import RemoteRepo
from quantkit.checkpoint.tokenizer import tokenizer_files
from quantkit.core.errors import OutputError
from quantkit.encodings.kernel import IMPROVED
from quantkit.formats.folder import FolderLayout

NAME = "quantkit.json"
_VERSION = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an output folder; an empty one where there is none.

    Raises:
        OutputError: it is not one that quantkit wrote.

    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"version": _VERSION, "artifacts": {}}
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read ({error}); move it away.") from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("version") != _VERSION
        or not isinstance(manifest.get("artifacts"), dict)
    ):
        raise OutputError(f"{path} was not written by this version of quantkit; move it away.")
    return manifest


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
            "family": work.model.family,
            "weights": [_describe_weights(checkpoint, file, sources) for file in checkpoint.files],
            "settings": [_describe_file(file) for file in _settings(checkpoint.path)],
        },
        "quantkit": quantkit.__version__,
        "kernel": {
            "name": work.kernel.name,
            "version": work.kernel.version,
            "search": _search(work, layout),
        },
        "imatrix": _describe_imatrix(work),
        "remarks": list(layout.remarks),
        **(layout.record if isinstance(layout, FolderLayout) else {}),
    }


def _search(work: Work, layout: Layout) -> str:
    """How the scales of an artifact were chosen; the same for all searches in most formats."""
    formats = {tensor.encoding.name for tensor in layout.plan.tensors}
    return work.kernel.search if formats & IMPROVED else "ggml"


def _describe_imatrix(work: Work) -> dict[str, str] | None:
    if work.imatrix is None:
        return None
    return {"file": work.imatrix.path.name, "sha256": work.imatrix.sha256}


def _settings(folder: Path) -> list[Path]:
    """The small files that the metadata was made from."""
    own = (folder / "config.json", folder / "generation_config.json", folder / "README.md")
    return [file for file in (*own, *tokenizer_files(folder)) if file.is_file()]


def _describe_repo(repo: RemoteRepo | None) -> dict[str, str]:
    """Where on the Hub a checkpoint came from."""
    return {} if repo is None else {"repo_id": repo.repo_id, "commit": repo.commit}


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
        "name": file.name,
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
    path = folder / NAME
    temporary = path.with_name(f".{NAME}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(folder)


def is_finished(folder: Path, work: Work, layout: Layout, *, elsewhere: bool = False) -> bool:
    """Whether an artifact of this work is there, whole, and made from these very weights.

    Of one that lies ``elsewhere`` no file need be here.
    """
    entry = read_manifest(folder)["artifacts"].get(layout.name)
    if entry is None or entry["plan_sha256"] != layout.digest:
        return False
    files = [(folder / file["name"], file["bytes"]) for file in entry["files"]]
    if not elsewhere and not all(
        path.is_file() and path.stat().st_size == size for path, size in files
    ):
        return False
    return (
        entry["imatrix"] == _describe_imatrix(work)
        and entry["kernel"].get("search", "ggml") == _search(work, layout)
        and _is_source(work.checkpoint, entry["source"])
    )


def _is_source(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's weights are those that an entry describes."""
    repo, weights = checkpoint.repo, entry["weights"]
    if repo is not None and all(
        entry.get(key) == value for key, value in _describe_repo(repo).items()
    ):
        return True
    if len(weights) != len(checkpoint.files):
        return False
    if repo is None:
        return all(map(_is_described, checkpoint.files, weights))
    known = [(file.name, repo.hashes.get(file.name)) for file in checkpoint.files]
    return known == [(weight["name"], weight["sha256"] or "unknown") for weight in weights]


def _is_described(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a weight file is still the one described. It is hashed only if its time differs."""
    size, modified_ns = stamp(path)
    if (path.name, size) != (entry["name"], entry["bytes"]):
        return False
    if modified_ns == entry.get("modified_ns"):
        return True
    return bool(_sha256(path, modified_ns) == entry["sha256"])


@cache
def _sha256(path: Path, _modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(artifact: Path) -> dict[str, str]:
    """The sha256 by file name of the files in an artifact's folder, as their manifest lists them.

    The manifest lies beside the artifact, or one folder up from the shards of a split one.
    Empty where there is none.
    """
    artifact = artifact.absolute()
    for folder in (artifact.parent, artifact.parent.parent):
        known = {
            folder / file["name"]: file["sha256"]
            for entry in read_manifest(folder)["artifacts"].values()
            for file in entry["files"]
        }
        if artifact in known:
            return {
                path.name: sum_ for path, sum_ in known.items() if path.parent == artifact.parent
            }
    return {}
