"""Whether a folder or a repository holds what was built: sizes, sha256, manifest, signature."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.building.entries import require_sound
from quantkit.building.manifest import NAME as MANIFEST
from quantkit.building.manifest import file_of, read_manifest
from quantkit.checkpoint.names import parse_hub_name
from quantkit.core.errors import PublishError, VerificationError
from quantkit.core.files import has_file, read_file, read_if_there
from quantkit.publishing.hashes import Expected, Report, find_faults
from quantkit.publishing.layout import IMATRIX, SIGNATURE, SUMS, check_path, read_sums

_WEIGHTS = (".gguf", ".safetensors")

SignatureState = Literal["none", "not checked", "good"]


@dataclass(frozen=True, slots=True)
class Checked:
    """One file; ``fault`` says in a few words what is wrong with it, None where nothing is."""

    path: str
    n_bytes: int | None
    sha256: str
    fault: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. ``read`` tells whether every byte was read here or the Hub's word taken."""

    place: str
    artifacts: tuple[str, ...]
    files: tuple[Checked, ...]
    signature: SignatureState
    read: bool
    unlisted: tuple[str, ...]

    @property
    def faults(self) -> tuple[Checked, ...]:
        """The files that are not as they should be."""
        return tuple(file for file in self.files if file.fault)

    @property
    def ok(self) -> bool:
        """Whether everything is as it was built."""
        return not self.faults

    def raise_if_failed(self) -> None:
        """Turn faults into an error.

        Raises:
            VerificationError: a file is not as it was built.

        """
        if self.ok:
            return
        first = ", ".join(f"{file.path} ({file.fault})" for file in self.faults[:3])
        more = f" and {len(self.faults) - 3} more" if len(self.faults) > 3 else ""
        raise VerificationError(
            f"{len(self.faults)} of {len(self.files)} files of {self.place} are not what was "
            f"built: {first}{more}; download or build them again."
        )


def verify(
    place: str,
    key: Path | None = None,
    report: Report = lambda _what, _done, _total: None,
) -> Verification:
    """Check a build's folder, a download, or a repository on the Hub against its manifest.

    Of a repository small files are downloaded; of the others the Hub's own sizes and sha256 are
    compared, which it checks when they are uploaded.

    Args:
        place: a folder, or a repository with or without ``@revision``.
        key: the public key that the signature must be of.
        report: told how far reading is.

    Raises:
        PublishError: there is no manifest, or it cannot be used.
        VerificationError: the signature is not of the key, or there is none.
        CheckpointError: the repository cannot be reached.

    """
    folder = Path(place)
    if folder.is_dir():
        return _verify_folder(folder, key, report)
    hub = parse_hub_name(place)
    if hub is None or hub.file is not None or folder.exists():
        raise PublishError(
            f"{place} is neither a folder nor a repository; give the folder of a build or of a "
            "download, or namespace/name."
        )
    return _verify_repo(place, hub.repo_id, hub.revision, key)


def _verify_folder(folder: Path, key: Path | None, report: Report) -> Verification:
    entries = _read_entries(folder, str(folder))
    raw_sums = read_if_there(folder / SUMS, error=PublishError)
    sums = None if raw_sums is None else read_sums(raw_sums)
    signature = read_if_there(folder / SIGNATURE, error=PublishError)
    signed, state = _signed(signature, key, folder)
    expected = _expected(entries, sums, signed)
    faults = find_faults(
        (
            Expected(file_of(folder, path), path, size, sha256)
            for path, (size, sha256) in expected.items()
        ),
        report=report,
    )
    faults |= _disagreements(entries, sums, signed)
    unlisted = (
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(_WEIGHTS) and path.is_file()
    )
    unlisted = (path for path in unlisted if not _is_ours(path))
    return Verification(
        place=str(folder),
        artifacts=tuple(entries),
        files=_checked(expected, faults),
        signature=state,
        read=True,
        unlisted=tuple(path for path in unlisted if path not in expected),
    )


def _is_ours(path: str) -> bool:
    """Whether quantkit left a file beside the artifacts: a matrix, or in a folder of its own."""
    return path == IMATRIX or path.startswith(".quantkit-")


def _verify_repo(place: str, repo_id: str, revision: str | None, key: Path | None) -> Verification:
    from quantkit.checkpoint.remote import download, explained, open_repo
    from quantkit.publishing.upload import list_files

    repo = open_repo(repo_id, revision)
    if MANIFEST not in repo.sizes:
        raise PublishError(
            f"{repo} has no {MANIFEST}, so what was built is unknown; it was not published by "
            "quantkit."
        )
    folder = download(repo, MANIFEST).parent
    entries = _read_entries(folder, str(repo))
    small = {name: download(repo, name) for name in (SUMS, SIGNATURE) if name in repo.sizes}
    sums = read_sums(read_file(small[SUMS], error=PublishError)) if SUMS in small else None
    signature = read_file(small[SIGNATURE], error=PublishError) if SIGNATURE in small else None
    signed, state = _signed(signature, key, repo)
    expected = _expected(entries, sums, signed)
    with explained(repo_id, revision):
        listed = list_files(repo_id, revision=repo.commit)
    faults = {}
    for path, (size, sha256) in expected.items():
        there = listed.get(path)
        if there is None:
            faults[path] = "missing"
        elif size is not None and there.n_bytes != size:
            faults[path] = f"{there.n_bytes:,} bytes instead of {size:,}"
        else:
            found = there.sha256
            if found is None:  # in git itself, so it is small
                found = hashlib.sha256(
                    read_file(download(repo, path), error=PublishError)
                ).hexdigest()
            if found != sha256:
                faults[path] = "another sha256"
    faults |= _disagreements(entries, sums, signed)
    unlisted = (path for path in sorted(listed) if path.endswith(_WEIGHTS))
    return Verification(
        place=place,
        artifacts=tuple(entries),
        files=_checked(expected, faults),
        signature=state,
        read=False,
        unlisted=tuple(path for path in unlisted if path not in expected),
    )


def _read_entries(folder: Path, place: str) -> dict[str, list[dict[str, Any]]]:
    """The files of every artifact in a manifest, all their names checked."""
    if not has_file(folder / MANIFEST, error=PublishError):
        raise PublishError(
            f"{place} has no {MANIFEST}, so what was built there is unknown; give the output "
            "folder of quantkit build, or a whole download."
        )
    manifest = read_manifest(folder)
    require_sound(manifest, f"The {MANIFEST} of {place}")
    entries: dict[str, list[dict[str, Any]]] = {
        name: entry["files"] for name, entry in manifest["artifacts"].items()
    }
    for files in entries.values():
        for file in files:
            check_path(file["name"])
    return entries


def _signed(
    signature: bytes | None, key: Path | None, place: object
) -> tuple[dict[str, str] | None, SignatureState]:
    """What the signature covers, if it is to be checked, and its state."""
    if key is None:
        return None, "none" if signature is None else "not checked"
    if signature is None:
        raise VerificationError(
            f"{place} is not signed: there is no {SIGNATURE}; do not trust it, or verify it "
            "without --key."
        )
    from quantkit.publishing.signing import signed_sums

    signed = signed_sums(signature, key)
    for path in signed:
        check_path(path)
    return signed, "good"


_Sizes = dict[str, tuple[int | None, str]]


def _expected(
    entries: Mapping[str, list[dict[str, Any]]],
    sums: Mapping[str, str] | None,
    signed: Mapping[str, str] | None,
) -> _Sizes:
    """Every file that is listed anywhere: its size, where known, and its sha256."""
    expected: _Sizes = {path: (None, sha256) for path, sha256 in (signed or {}).items()}
    expected |= {path: (None, sha256) for path, sha256 in (sums or {}).items()}
    for files in entries.values():
        expected |= {file["name"]: (file["bytes"], file["sha256"]) for file in files}
    return dict(sorted(expected.items()))


def _disagreements(
    entries: Mapping[str, list[dict[str, Any]]],
    sums: Mapping[str, str] | None,
    signed: Mapping[str, str] | None,
) -> dict[str, str]:
    """Files about which manifest, sums and signature do not say the same."""
    faults = {}
    listed = {file["name"]: file["sha256"] for files in entries.values() for file in files}
    if sums is not None:
        for path, sha256 in listed.items():
            if sums.get(path) != sha256:
                faults[path] = f"{SUMS} and {MANIFEST} disagree"
    if signed is not None:
        for path, sha256 in {**listed, **(sums or {})}.items():
            if signed.get(path) != sha256:
                faults[path] = "not what was signed"
    return faults


def _checked(expected: _Sizes, faults: Mapping[str, str]) -> tuple[Checked, ...]:
    return tuple(
        Checked(path, size, sha256, faults.get(path)) for path, (size, sha256) in expected.items()
    )
