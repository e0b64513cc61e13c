"""Publishing while a build goes on: what it may be is asked first, the card is sent last.

A plan knows every header and every size, so the repository can be laid out before a weight is read:
files of their true sizes with nothing behind their headers stand for the artifacts, in a temporary
folder. The same stand-ins stay where sent artifacts were, until the card is made of them.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.building import manifest
from quantkit.building.shipping import STAGED, Shipping, is_sent
from quantkit.building.work import Work
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.errors import OutputError
from quantkit.core.files import read_file
from quantkit.core.writing import write_file
from quantkit.publishing import release as releases
from quantkit.publishing.checks import refuse_license, refuse_others
from quantkit.publishing.release import Published, PublishOptions, with_wishes
from quantkit.publishing.source import source_of
from quantkit.publishing.upload import Report, Upload, Uploader

_UNKNOWN = "0" * 64


def begin(
    works: Sequence[Work],
    repo_id: str,
    wishes: PublishOptions,
    *,
    private: bool = False,
    report: Report = lambda _path, _done, _total: None,
) -> Shipping:
    """Check that artifacts may be published, make the repository, and tell where files go.

    Args:
        works: what will be built of one checkpoint: GGUF files.
        repo_id: where it goes.
        wishes: as `release.prepare` takes them.
        private: make the repository private, if it must be made.
        report: told how far each upload is.

    Raises:
        PublishError: it must not be published, or not there.
        UploadError: the Hub does not answer.

    """
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        stand_ins = _stand_ins(works, Path(folder))
        ready = releases.prepare(stand_ins, repo_id, replace(wishes, force=True), hashed=False)
        uploader = Uploader(repo_id, private=private, report=report)
        there = uploader.open()
        # What an earlier run of this build sent is ours, whatever its hash.
        ours = [
            Upload(upload.content, upload.path, there[upload.path].sha256 or _UNKNOWN)
            for upload in ready.uploads
            if upload.path in there
        ]
        names = [layout.name for work in works for layout in work.layouts]
        refuse_others(repo_id, names, ours, there)

    def send(file: Path, path: str, sha256: str) -> None:
        uploader.send([Upload(file, path, sha256)], f"Add {path} with quantkit")

    return Shipping(repo_id, send)


def refuse_folders(
    checkpoint: Checkpoint,
    names: Sequence[str],
    repo_id: str,
    wishes: PublishOptions,
    *,
    private: bool = False,
) -> None:
    """Refuse artifacts in folders that may not be published, before they are built.

    Their files are not known to the byte yet, so less can be told than `begin` does. The repository
    is made.

    Raises:
        PublishError: the license forbids it or is not known, or the repository is another's.
        CheckpointError: what the license is cannot be read.
        UploadError: the Hub does not answer.

    """
    refuse_license(checkpoint.path, checkpoint.name, with_wishes(source_of(checkpoint), wishes))
    there = Uploader(repo_id, private=private, report=lambda _path, _done, _total: None).open()
    if manifest.NAME in there:
        refuse_others(repo_id, names, (), there)


def _stand_ins(works: Sequence[Work], folder: Path) -> Path:
    """Every artifact without its weights, and a manifest of them."""
    entries = {}
    for work, layout in [(of, layout) for of in works for layout in of.layouts]:
        files = []
        for file in layout.files:
            name = f"{layout.folder}/{file.name}" if layout.folder else file.name
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            write_file(path, file.header, file.n_bytes)
            files.append({"name": name, "bytes": file.n_bytes, "sha256": _UNKNOWN})
        unread = dict.fromkeys(work.checkpoint.files, _UNKNOWN)
        entry = manifest.describe_artifact(work, layout, files, unread)
        for file in entry["source"]["weights"]:
            file["sha256"] = None
        entries[layout.name] = entry
    _write_manifest(folder, entries)
    return folder


def _write_manifest(folder: Path, entries: Mapping[str, object]) -> None:
    text = json.dumps({"version": 1, "artifacts": entries})
    write_file(folder / manifest.NAME, text.encode())


def end(
    out: Path,
    shipping: Shipping,
    wishes: PublishOptions,
    *,
    report: Report = lambda _path, _done, _total: None,
    note: Callable[[str], None] = lambda _remark: None,
) -> Published | None:
    """Send what describes the artifacts that a build has sent, the card last.

    Args:
        out: the output folder.
        shipping: what `begin` gave.
        wishes: as `begin` took them.
        report: told how far each upload is.
        note: told what the card lacks.

    Returns:
        what was sent; None where all of it was before.

    Raises:
        PublishError, UploadError: as `release.publish` does.

    """
    staged = out / STAGED
    if not staged.is_dir():
        return None
    known = manifest.sound_entries(out)
    entries = {
        name: entry
        for name, entry in known.items()
        if is_sent(entry, shipping) and all((staged / f["name"]).exists() for f in entry["files"])
    }
    _write_manifest(staged, entries)
    for entry in entries.values():
        if entry.get("imatrix") and (out / entry["imatrix"]["file"]).is_file():
            name = entry["imatrix"]["file"]
            matrix = read_file(manifest.file_of(out, name), most=2 * 10**9, error=OutputError)
            write_file(staged / name, matrix)
    ready = releases.prepare(staged, shipping.to, replace(wishes, force=True), hashed=False)
    for remark in ready.notes:
        note(remark)
    published = releases.publish(ready, report=report)
    shutil.rmtree(staged)
    return published
