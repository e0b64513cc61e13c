"""What is known of the model that was quantized: from its checkpoint, else from the artifact.

Everything here was written by the model's author. It is data: it is never a template, a command or
a path, and what does not have the expected form is left out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.building.manifest import is_described
from quantkit.checkpoint.card import read_front_matter
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.gguf import read_header
from quantkit.checkpoint.names import (
    is_repo_id,
    shard_names,
    snapshot_of,
    weight_files,
    without_address,
)
from quantkit.core.errors import CheckpointError, PublishError, QuantkitError
from quantkit.core.files import has_file, read_file
from quantkit.publishing.layout import PublishedArtifact
from quantkit.publishing.metadata import SourceFacts, base_of_card, of_card, of_metadata

if TYPE_CHECKING:
    from quantkit.checkpoint.remote import RemoteRepo

_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_MOST_BYTES = 2**20
_TEMPLATES = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")


def find_source(artifacts: Sequence[PublishedArtifact], wish: str | None) -> SourceFacts:
    """What is known of the model behind some artifacts.

    Args:
        artifacts: of one build.
        wish: the checkpoint: a folder, or a Hub id with or without ``@revision``; by default the
            one that the manifest names, else what the artifacts themselves hold. Of artifacts that
            were made from a GGUF, that GGUF, or the checkpoint that it was made from.

    Raises:
        CheckpointError: the checkpoint cannot be reached or read.
        PublishError: it is not the one that the artifacts were built from.

    """
    described = artifacts[0].entry["source"]
    weights = described.get("weights", ())
    if weights and all(file["name"].endswith(".gguf") for file in weights):
        return _find_behind_gguf(_of_artifact(artifacts[0]), described, wish)
    if wish is None and isinstance(described.get("repo_id"), str):
        commit = described.get("commit")
        wish = described["repo_id"] + (f"@{commit}" if commit else "")
    found = replace(_of_artifact(artifacts[0]), base_model=None)
    return found if wish is None else _merge(found, _of_checkpoint(wish, described))


def _of_checkpoint(wish: str, described: Mapping[str, Any]) -> SourceFacts:
    folder = Path(wish)
    if folder.is_dir():
        return _of_folder(folder, described)
    repo_id, _, revision = without_address(wish).partition("@")
    if not is_repo_id(repo_id):
        raise PublishError(
            f"There is no checkpoint {wish!r}; give its folder, or its name on the Hub."
        )
    return _of_hub(repo_id, revision or None, described)


def _find_behind_gguf(
    found: SourceFacts, described: Mapping[str, Any], wish: str | None
) -> SourceFacts:
    """What is known of the model in the GGUF that artifacts were made from; its keys are theirs."""
    found = replace(found, files=tuple(file["name"] for file in described["weights"]))
    repo_id = described.get("repo_id")
    if wish is None or wish.endswith(".gguf"):
        if wish is not None and Path(wish).is_file():
            _require_same(shard_names(Path(wish)), described)
        if repo_id is None:
            return found
        return _merge(found, _of_hub_gguf(repo_id, described.get("commit"), described))
    named = _of_checkpoint(wish, {})
    original = named.original
    return _merge(found, replace(named, repo_id=None, commit=None, base_model=original))


def _require_same(files: Sequence[Path], described: Mapping[str, Any]) -> None:
    weights = described["weights"]
    if len(files) != len(weights) or not all(map(is_described, files, weights)):
        raise PublishError(
            f"{files[0]} is not the GGUF that was built from: its size or sha256 is not that in "
            "the manifest; give the right one."
        )


def source_of(checkpoint: Checkpoint) -> SourceFacts:
    """What is known of the model in a checkpoint.

    Raises:
        CheckpointError: it cannot be reached or read.

    """
    repo = checkpoint.repo
    if checkpoint.header is not None:
        found = of_metadata(checkpoint.header.metadata)
        return _merge(found, _of_hub_gguf(repo.repo_id, repo.commit, {})) if repo else found
    return _of_hub(repo.repo_id, repo.commit, {}) if repo else _of_folder(checkpoint.path, {})


def _merge(first: SourceFacts, better: SourceFacts) -> SourceFacts:
    """The second source, with what only the first one knows."""
    empty = SourceFacts()
    missing = {
        name: getattr(first, name)
        for name in SourceFacts.__slots__
        if getattr(better, name) == getattr(empty, name)
    }
    return replace(better, **missing)


def _of_folder(folder: Path, described: Mapping[str, Any]) -> SourceFacts:
    config = folder / "config.json"
    if not has_file(config, error=CheckpointError):
        raise CheckpointError(f"{folder} has no config.json; give the folder of the checkpoint.")
    expected = {file["name"]: file["sha256"] for file in described.get("settings", ())}
    _check_same(str(folder), expected.get("config.json"), read_file(config, error=CheckpointError))
    source = _of_files(folder)
    if snapshot := snapshot_of(folder):
        source = replace(source, repo_id=snapshot[0], commit=snapshot[1])
    return source


def _check_same(name: str, sha256: str | None, config: bytes) -> None:
    if sha256 is not None and hashlib.sha256(config).hexdigest() != sha256:
        raise PublishError(
            f"{name} is not the checkpoint that was built from: its config.json differs; give the "
            "right one, or the right revision."
        )


def _of_hub(repo_id: str, revision: str | None, described: Mapping[str, Any]) -> SourceFacts:
    from quantkit.checkpoint.remote import download, explained, open_repo
    from quantkit.publishing.upload import list_files

    repo = open_repo(repo_id, revision)
    wanted = ("config.json", "README.md", *_TEMPLATES, *_LICENSES)
    small = [name for name in wanted if 0 < repo.sizes.get(name, 0) <= _MOST_BYTES]
    if "config.json" not in small:
        raise CheckpointError(f"{repo} has no config.json; name the model that was quantized.")
    paths = [download(repo, name) for name in small]
    folder = paths[0].parent
    expected = {file["name"]: file["sha256"] for file in described.get("settings", ())}
    _check_same(str(repo), expected.get("config.json"), read_file(folder / "config.json"))
    with explained(repo_id, revision):
        listed = list_files(repo_id, revision=repo.commit)
    verified = _check_weights(repo, {path: file.sha256 for path, file in listed.items()}, described)
    return replace(_of_files(folder), repo_id=repo_id, commit=repo.commit, verified=verified)


def _of_hub_gguf(repo_id: str, revision: str | None, described: Mapping[str, Any]) -> SourceFacts:
    """What the repository of a GGUF says of it: its card, and the model that this names."""
    from quantkit.checkpoint.remote import download, explained, open_repo
    from quantkit.publishing.upload import list_files

    repo = open_repo(repo_id, revision)
    wanted = ("README.md", *_LICENSES)
    small = [name for name in wanted if 0 < repo.sizes.get(name, 0) <= _MOST_BYTES]
    folders = {download(repo, name).parent for name in small}
    card = _front_matter(min(folders) / "README.md") if folders else {}
    text = _license_text(min(folders)) if folders else None
    known = replace(of_card(card), license_text=text)
    with explained(repo_id, revision):
        listed = list_files(repo_id, revision=repo.commit)
    verified = _check_weights(repo, {path: file.sha256 for path, file in listed.items()}, described)
    # Where the checkpoint lies beside the GGUF, the repository is the model's own.
    base = None if weight_files(repo.sizes) else base_of_card(card)
    return replace(known, repo_id=repo_id, commit=repo.commit, verified=verified, base_model=base)


def _check_weights(
    repo: "RemoteRepo", listed: Mapping[str, str | None], described: Mapping[str, Any]
) -> bool:
    """Whether the Hub lists the weights that were read; None of them may differ."""
    weights = described.get("weights", ())
    for file in weights:
        if file["sha256"] and listed.get(file["name"]) not in (None, file["sha256"]):
            raise PublishError(
                f"{repo} is not the checkpoint that was built from: its {file['name']} differs; "
                "give the right repository or revision."
            )
    return bool(weights) and all(file["sha256"] and listed.get(file["name"]) for file in weights)


def _of_files(folder: Path) -> SourceFacts:
    """What the small files of a checkpoint say."""
    source = of_card(_front_matter(folder / "README.md"))
    template, tokens = _template(folder)
    return replace(
        source,
        license_text=_license_text(folder),
        chat_template=template,
        special_tokens=tokens,
    )


def _front_matter(card: Path) -> dict[str, Any]:
    """What a card says; nothing where it is there but not as a card should be."""
    if not has_file(card, error=CheckpointError):
        return {}
    try:
        return read_front_matter(card)
    except CheckpointError:
        return {}


def _of_artifact(artifact: PublishedArtifact) -> SourceFacts:
    """What an artifact holds of its source."""
    first = artifact.files[0].local
    if artifact.quant.format != "gguf":
        return replace(_of_files(first.parent), tags=(), datasets=())
    return of_metadata(read_header(first).metadata)


def _template(folder: Path) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    from quantkit.checkpoint.tokenizer.chat_template import template_metadata
    from quantkit.checkpoint.tokenizer.source import TokenizerSource

    path = folder / "tokenizer_config.json"
    try:
        from quantkit.checkpoint.folder import read_json

        settings = read_json(path) if has_file(path, error=CheckpointError) else {}
        bare = TokenizerSource(folder, {}, 0, settings, {}, {}, None, {}, None)
        template = template_metadata(bare).get("tokenizer.chat_template")
    except QuantkitError:
        return None, ()
    special = {}
    for kind in ("bos_token", "eos_token"):
        token = settings.get(kind)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[kind] = token
    usable = isinstance(template, str) and template
    return (str(template) if usable else None), tuple(special.items())


def _license_text(folder: Path) -> bytes | None:
    """The licence's own file. A link that leads out of the checkpoint is not followed."""
    home = folder.resolve()
    places = (home, home.parent.parent / "blobs")  # the Hub's cache holds its contents there
    for name in _LICENSES:
        path = folder / name
        if not has_file(path, error=PublishError) or path.stat().st_size > _MOST_BYTES:
            continue
        if not any(path.resolve().is_relative_to(place) for place in places):
            raise PublishError(
                f"{path} is a link that leads out of its folder; put the licence itself there."
            )
        return read_file(path, error=PublishError)
    return None
