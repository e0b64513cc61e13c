"""What is not published, each for a reason that one sentence gives."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from quantkit.building.manifest import NAME as MANIFEST
from quantkit.building.manifest import read_manifest
from quantkit.core.errors import OutputError, PublishError
from quantkit.publishing.hashes import Expected, Report, find_faults
from quantkit.publishing.layout import Placed, PublishedArtifact
from quantkit.publishing.metadata import SourceFacts
from quantkit.publishing.upload import RemoteFile, Upload

_FORBIDDING = re.compile(
    r"(^|[^a-z])(nd|no-?derivatives|proprietary|all-rights-reserved)([^a-z]|$)"
)
_FORBIDDING_TEXT = re.compile(rb"no[- ]?derivatives|all rights reserved\W*$", re.IGNORECASE)
_TITLE_BYTES = 300


def refuse_untested(artifacts: Sequence[PublishedArtifact], *, force: bool) -> None:
    """Refuse artifacts that no smoke test has passed.

    Raises:
        PublishError: there are some, and it is not forced.

    """
    untested = [artifact.name for artifact in artifacts if not artifact.passed]
    if untested and not force:
        raise PublishError(
            f"{some(untested)} did not pass a smoke test; build with it, or publish with --force, "
            "and the card will say so."
        )


def refuse_changed(folder: Path, placed: Sequence[Placed], *, hashed: bool, report: Report) -> None:
    """Refuse files that are not as the manifest describes them.

    Raises:
        PublishError: one of them is not.

    """
    expected = [Expected(file.local, file.path, file.n_bytes, file.sha256) for file in placed]
    faults = find_faults(expected, hashed=hashed, report=report)
    if faults:
        words = [f"{path}: {fault}" for path, fault in faults.items()]
        raise PublishError(
            f"{folder / MANIFEST} does not match the files ({some(words)}); build again."
        )


def refuse_license(place: object, title: str, source: SourceFacts) -> None:
    """Refuse a model whose license is unknown, or forbids it where that can be told.

    Raises:
        PublishError: it is unknown, or does.

    """
    if source.license is None and source.license_text is None:
        raise PublishError(
            f"The license of the model in {place} is not known; name its checkpoint with "
            "--checkpoint, or its license with --license, such as apache-2.0."
        )
    named = " ".join(filter(None, (source.license, source.license_name))).lower()
    titled = _FORBIDDING_TEXT.search((source.license_text or b"")[:_TITLE_BYTES])
    if _FORBIDDING.search(named) or titled:
        raise PublishError(
            f"The license of {title} ({named or 'its LICENSE file'}) does not allow "
            "changed versions to be passed on; ask its owner, and do not publish quants of it."
        )


def refuse_others(
    repo_id: str,
    names: Collection[str],
    uploads: Sequence[Upload],
    there: Mapping[str, RemoteFile],
) -> None:
    """Refuse to write over what another hand put into a repository.

    Args:
        repo_id: the repository.
        names: of the artifacts that are published.
        uploads: all files that are.
        there: the files in it.

    Raises:
        PublishError: files or artifacts there would be lost, or listed no more.
        CheckpointError: its manifest cannot be read.

    """
    ours = {upload.path: upload for upload in uploads}
    if MANIFEST in there:
        known = set(_remote_artifacts(repo_id))
        lost = sorted(known.difference(names))
        if lost:
            raise PublishError(
                f"{repo_id} lists {some(lost)}, which would no longer be in any manifest or card; "
                "publish from a folder that holds all of them, or to another repository."
            )
        return
    others = [
        path
        for path, file in there.items()
        if path != ".gitattributes" and not (path in ours and file.holds(ours[path]))
    ]
    if others:
        raise PublishError(
            f"{repo_id} exists and holds other files ({some(others)}); choose another name, or "
            "remove them there first."
        )


def _remote_artifacts(repo_id: str) -> list[str]:
    from quantkit.checkpoint.remote import download, open_repo

    folder = download(open_repo(repo_id), MANIFEST).parent
    try:
        return list(read_manifest(folder)["artifacts"])
    except OutputError:
        raise PublishError(
            f"The {MANIFEST} of {repo_id} is not quantkit's; choose another repository."
        ) from None


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
