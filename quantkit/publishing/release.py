"""A build made ready to publish, and published: checked first, then sent, the card last."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from quantkit.building.manifest import NAME as MANIFEST
from quantkit.checkpoint.gguf import read_header
from quantkit.core.errors import (
    GGUFError,
    MissingPackageError,
    OutputError,
    PublishError,
    QuantkitError,
    UploadError,
)
from quantkit.core.files import has_file
from quantkit.core.packages import require
from quantkit.publishing import layout, measured
from quantkit.publishing.card import Facts, ImatrixNote, render_card, title_of
from quantkit.publishing.checks import (
    refuse_changed,
    refuse_license,
    refuse_others,
    refuse_untested,
    some,
)
from quantkit.publishing.earlier import Earlier
from quantkit.publishing.fits import find_fits
from quantkit.publishing.hashes import Expected, find_faults
from quantkit.publishing.hashes import Report as HashReport
from quantkit.publishing.layout import Placed, PublishedArtifact
from quantkit.publishing.metadata import SourceFacts
from quantkit.publishing.prompt import render_prompt
from quantkit.publishing.source import find_source
from quantkit.publishing.upload import Report, Upload, Uploader
from quantkit.verification.kept import FILE as COMPARISON

_SMALL = 10 * 10**6


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """What is asked for beyond the folder and the repository; see ``quantkit publish --help``."""

    family: Annotated[str, Meta(pattern="^(gguf|gptq|bnb)$")] | None = None
    quants: tuple[str, ...] = ()
    checkpoint: str | None = None
    base_model: str | None = None
    license: str | None = None
    comparison: Path | None = None
    key: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """What goes into a repository: groups of files in the order in which they are committed.

    The card is the last group. ``notes`` say what is missing in it and why.
    """

    repo_id: str
    facts: Facts
    card: str
    groups: tuple[tuple[Upload, ...], ...]
    notes: tuple[str, ...]

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """All files, in order."""
        return tuple(upload for group in self.groups for upload in group)


def prepare(
    folder: Path,
    repo_id: str,
    wishes: PublishOptions,
    *,
    hashed: bool = True,
    look: Callable[[str], Earlier | None] = lambda _repo_id: None,
    report: HashReport = lambda _what, _done, _total: None,
) -> Release:
    """Check a build and lay out its repository. Writes nothing and sends nothing.

    Args:
        folder: what ``quantkit build`` wrote.
        repo_id: ``namespace/name``.
        wishes: how.
        hashed: read every byte and compare its sha256, else compare sizes only.
        look: tells what the repository holds, whose other quants stay in its manifest and card.
        report: told how far reading is.

    Raises:
        PublishError: it must not be published, or not like this; the message says what to mend.
        CheckpointError, GGUFError, OutputError: something that it needs cannot be read.

    """
    layout.check_repo_id(repo_id)
    if wishes.key is not None:
        from quantkit.publishing.signing import check_key

        check_key(wishes.key)
    artifacts = layout.find_artifacts(folder, repo_id, wishes.family, wishes.quants)
    refuse_untested(artifacts, force=wishes.force)
    placed = [file for artifact in artifacts for file in artifact.files]
    refuse_changed(folder, placed, hashed=False, report=report)
    source = with_wishes(find_source(artifacts, wishes.checkpoint), wishes)
    refuse_license(folder, title_of(artifacts), source)
    earlier = look(repo_id)
    there = earlier.beside(artifacts) if earlier is not None else ()
    if hashed:
        refuse_changed(folder, placed, hashed=True, report=report)
    notes: list[str] = []
    everything = layout.in_order((*artifacts, *there))
    described = [file for artifact in everything for file in artifact.files]
    if source.original is None:
        notes.append(
            "The card names no base model, so the Hub shows no lineage; if the checkpoint is on "
            "the Hub, name it with --base-model NAMESPACE/NAME."
        )
    imatrices, imatrix_file = _find_imatrices(folder, everything, notes, earlier)
    comparison = _find_comparison(folder, wishes.comparison, artifacts)
    picture = _draw(comparison, notes)
    in_artifact = any(file.path == layout.LICENSE for file in placed)
    facts = Facts(
        repo_id=repo_id,
        artifacts=everything,
        source=source,
        imatrices=imatrices,
        measured=comparison,
        fits=_find_fits(everything, notes),
        prompt=_prompt(source, notes),
        has_picture=picture is not None,
        has_license=source.license_text is not None or in_artifact,
        is_signed=wishes.key is not None,
    )
    about = [_bytes(MANIFEST, layout.published_manifest(everything))]
    if imatrix_file is not None:
        about.append(imatrix_file)
    if source.license_text is not None and not in_artifact:
        about.append(_bytes(layout.LICENSE, source.license_text))
    kept = [i.sha256 for i in imatrices if i.published] if imatrix_file is None else []
    described += [Placed(Path(), layout.IMATRIX, 0, sha256) for sha256 in kept]
    about.append(_sums(described, about))
    if wishes.key is not None:
        about.append(_signature(title_of(artifacts), described, about, wishes.key))
    if picture is not None:
        about.append(_bytes(layout.PICTURE, picture))
    card = render_card(facts)
    groups = (*_weights(artifacts), tuple(about), (_bytes(layout.CARD, card.encode()),))
    return Release(repo_id, facts, card, groups, tuple(notes))


@dataclass(frozen=True, slots=True)
class Published:
    """A release, and the paths of it that were sent; the Hub had the others already."""

    release: Release
    sent: tuple[str, ...]
    dry_run: bool = False


def publish(
    release: Release,
    *,
    private: bool = False,
    card_only: bool = False,
    message: str | None = None,
    report: Report = lambda _path, _done, _total: None,
) -> Published:
    """Send what the Hub does not hold yet, and check that it holds all of it then.

    Args:
        release: what to send.
        private: make the repository private, if it must be made.
        card_only: send the card and its picture only; the files must be there.
        message: of the commits.
        report: told how far each file is.

    Raises:
        PublishError: the repository holds what would be lost, or must not be written.
        UploadError: the Hub does not take it, or does not hold it afterwards.

    """
    uploader = Uploader(release.repo_id, private=private, report=report)
    there = uploader.refresh() if card_only else uploader.open()
    names = [artifact.name for artifact in release.facts.artifacts]
    refuse_others(release.repo_id, names, release.uploads, there)
    groups = release.groups
    if card_only:
        missing = [
            upload.path
            for upload in release.uploads
            if upload.path not in (layout.CARD, layout.PICTURE) and not uploader.has(upload)
        ]
        if missing:
            raise PublishError(
                f"{release.repo_id} does not hold what the card would describe "
                f"({some(missing)}); run the command without --card-only."
            )
        groups = (tuple(u for u in release.uploads if u.path in (layout.CARD, layout.PICTURE)),)
    sent: list[str] = []
    for group in groups:
        what = group[0].path if len(group) == 1 else f"{len(group)} files"
        sent += uploader.send(group, message or f"Add {what} with quantkit")
    uploader.refresh()
    wrong = [upload.path for upload in release.uploads if not uploader.has(upload)]
    if wrong:
        raise UploadError(
            f"{release.repo_id} does not hold what was sent ({some(wrong)}); was it changed by "
            "somebody else? Run the same command again."
        )
    return Published(release, tuple(sent))


# --- What goes in ----------------------------------------------------------------------------


def with_wishes(source: SourceFacts, wishes: PublishOptions) -> SourceFacts:
    """What is known of a model, with what the user says of it.

    Raises:
        PublishError: they disagree.

    """
    if wishes.base_model is not None:
        layout.check_repo_id(wishes.base_model)
        known = source.base_model if source.files else source.repo_id
        if known not in (None, wishes.base_model):
            raise PublishError(
                f"--base-model says {wishes.base_model}, but the checkpoint is {known}; "
                "leave one of them out."
            )
        if source.files:  # it was made from a GGUF of that
            source = replace(source, base_model=wishes.base_model)
        else:
            source = replace(source, repo_id=wishes.base_model)
    if wishes.license is not None:
        if source.license not in (None, wishes.license.lower()):
            raise PublishError(
                f"--license says {wishes.license}, but the model's own card says "
                f"{source.license}; leave --license out."
            )
        source = replace(source, license=wishes.license.lower())
    return source


def _find_imatrices(
    folder: Path, artifacts: Sequence[PublishedArtifact], notes: list[str], earlier: Earlier | None
) -> tuple[tuple[ImatrixNote, ...], Upload | None]:
    """The importance matrices that were used; the file of the only one, if it is still there."""
    used = {
        entry["sha256"]: entry["file"]
        for artifact in artifacts
        if isinstance(entry := artifact.entry.get("imatrix"), dict)
    }
    found, upload = [], None
    for sha256, name in used.items():
        imatrix = ImatrixNote(str(name).rpartition("/")[2], sha256)
        file = folder / imatrix.name
        if earlier is not None and len(used) == 1 and earlier.imatrix(sha256):
            found.append(replace(imatrix, name=layout.IMATRIX, published=True))
            continue
        if find_faults([Expected(file, file.name, None, sha256)]):
            notes.append(f"{file} is not the importance matrix that was used, so it stays here.")
            found.append(imatrix)
            continue
        imatrix = replace(imatrix, **_describe_imatrix(file))
        if len(used) == 1 and file.suffix == ".gguf":
            upload = Upload(file, layout.IMATRIX, sha256)
            imatrix = replace(imatrix, name=layout.IMATRIX, published=True)
        found.append(imatrix)
    return tuple(found), upload


def _describe_imatrix(file: Path) -> dict[str, Any]:
    try:
        metadata = read_header(file).metadata
    except GGUFError:
        return {}
    texts = [re.split(r"[\\/]", str(t))[-1] for t in metadata.get("imatrix.datasets") or ()]
    chunks = metadata.get("imatrix.chunk_count")
    return {"text": ", ".join(texts) or None, "chunks": chunks if isinstance(chunks, int) else None}


def _find_comparison(
    folder: Path, wish: Path | None, artifacts: Sequence[PublishedArtifact]
) -> measured.Measured | None:
    file = wish or folder / COMPARISON
    if wish is None and not has_file(file, error=PublishError):
        return None
    return measured.read_comparison(file, artifacts)


def _draw(comparison: measured.Measured | None, notes: list[str]) -> bytes | None:
    if comparison is None:
        return None
    try:
        require("matplotlib", "matplotlib", "plot", "The picture")
    except MissingPackageError as error:
        notes.append(str(error))
        return None
    try:
        return measured.draw_frontier(comparison)
    except OSError as error:
        raise OutputError(f"The picture cannot be drawn: {error.strerror}.") from None


def _find_fits(artifacts: Sequence[PublishedArtifact], notes: list[str]) -> Any:
    try:
        return find_fits(artifacts)
    except OSError as error:
        raise OutputError(f"llama.cpp cannot be asked for sizes: {error.strerror}.") from None
    except QuantkitError as error:
        notes.append(f"No column of what it fits in: {error}")
    return None


def _prompt(source: SourceFacts, notes: list[str]) -> str | None:
    if source.chat_template is None:
        return None
    text = render_prompt(source.chat_template, dict(source.special_tokens))
    if text is None:
        notes.append("No prompt format: the chat template does not render in the sandbox.")
    return text


def _weights(artifacts: Sequence[PublishedArtifact]) -> list[tuple[Upload, ...]]:
    """Large files one by one, the small ones of an artifact together after them."""
    groups: list[tuple[Upload, ...]] = []
    for artifact in artifacts:
        uploads = [Upload(file.local, file.path, file.sha256) for file in artifact.files]
        large = [u for u, f in zip(uploads, artifact.files, strict=True) if _is_large(f)]
        groups += [(upload,) for upload in large]
        if small := tuple(upload for upload in uploads if upload not in large):
            groups.append(small)
    return groups


def _is_large(file: Placed) -> bool:
    return file.n_bytes > _SMALL or file.path.endswith((".gguf", ".safetensors"))


def _bytes(path: str, data: bytes) -> Upload:
    return Upload(data, path, hashlib.sha256(data).hexdigest())


def _sums(placed: Sequence[Placed], about: Sequence[Upload]) -> Upload:
    sums = {file.path: file.sha256 for file in placed}
    sums |= {upload.path: upload.sha256 for upload in about}
    return _bytes(layout.SUMS, layout.write_sums(sums))


def _signature(name: str, placed: Sequence[Placed], about: Sequence[Upload], key: Path) -> Upload:
    from quantkit.publishing.signing import sign

    sums = {file.path: file.sha256 for file in placed}
    sums |= {upload.path: upload.sha256 for upload in about}
    return _bytes(layout.SIGNATURE, sign(name, sums, key))
