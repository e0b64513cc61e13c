"""What a repository holds already, when more quants of the same weights are added to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.building.entries import fault_of
from quantkit.building.manifest import NAME as MANIFEST
from quantkit.building.manifest import read_manifest
from quantkit.core.errors import OutputError, PublishError
from quantkit.publishing.layout import IMATRIX, Placed, PublishedArtifact, check_path, quant_of
from quantkit.publishing.refusals import explained
from quantkit.publishing.upload import RemoteFile, list_files


@dataclass(frozen=True, slots=True)
class Earlier:
    """The manifest's entries of a repository by artifact, and its files as the Hub lists them."""

    repo_id: str
    entries: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, RemoteFile]

    def beside(self, artifacts: Sequence[PublishedArtifact]) -> tuple[PublishedArtifact, ...]:
        """The artifacts of the repository that are not among those published now.

        They stay in its manifest and card. Their files are named as ``fit`` finds them on the Hub.

        Raises:
            PublishError: they are of another format or of other weights, or not what the manifest
                says, so that neither manifest nor card can be about both.

        """
        names = {artifact.name for artifact in artifacts}
        found = []
        for name, entry in self.entries.items():
            if name in names:
                continue
            quant = quant_of(entry)
            if quant is None or {quant.format, artifacts[0].quant.format} != {"gguf"}:
                raise self._refusal(name, "which is of another format")
            if _weights(entry) != _weights(artifacts[0].entry):
                raise self._refusal(name, "which was made from other weights")
            placed = [_placed(self.repo_id, file) for file in entry["files"]]
            for file in placed:
                there = self.files.get(file.path)
                if there is None or (there.n_bytes, there.sha256) != (file.n_bytes, file.sha256):
                    raise self._refusal(name, f"whose {file.path} is not there as it was built")
            folder = placed[0].path.rpartition("/")[0]
            found.append(PublishedArtifact(name, quant, folder, tuple(placed), entry))
        return tuple(found)

    def imatrix(self, sha256: str) -> bool:
        """Whether an importance matrix lies there already."""
        there = self.files.get(IMATRIX)
        return there is not None and there.sha256 == sha256

    def _refusal(self, name: str, why: str) -> PublishError:
        return PublishError(
            f"{self.repo_id} lists {name[:80]!r}, {why}; publish to another repository, or from a "
            "folder that holds everything that is to be there."
        )


def find_earlier(repo_id: str) -> Earlier | None:
    """What quantkit published in a repository before; None where it did not, or there is none.

    Raises:
        PublishError: the manifest there is not quantkit's, or names what is not a file.
        UploadError, CheckpointError: the Hub does not answer.

    """
    from huggingface_hub.errors import RepositoryNotFoundError

    from quantkit.checkpoint.remote import download, open_repo

    with explained(repo_id):
        try:
            files = list_files(repo_id)
        except RepositoryNotFoundError:
            return None
    if MANIFEST not in files:
        return None
    folder = download(open_repo(repo_id), MANIFEST).parent
    try:
        entries = read_manifest(folder)["artifacts"]
        for name, entry in entries.items():
            if "recipe" in entry and fault_of(name, entry):
                raise ValueError(name)
            for file in entry["files"]:
                check_path(_placed(repo_id, file).path)
    except (OutputError, KeyError, TypeError, ValueError, AttributeError):
        raise PublishError(
            f"The {MANIFEST} of {repo_id} is not quantkit's; choose another repository."
        ) from None
    return Earlier(repo_id, entries, files)


def _placed(repo_id: str, file: Mapping[str, Any]) -> Placed:
    path = str(file["name"])
    return Placed(Path(repo_id, path), path, int(file["bytes"]), str(file["sha256"]))


def _weights(entry: Mapping[str, Any]) -> list[Any]:
    """The sha256 of the weights that an artifact was made of."""
    return [file.get("sha256") for file in (entry.get("source") or {}).get("weights") or ()]
