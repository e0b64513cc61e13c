"""Which files of a build go into a repository, and under which names.

One repository holds one format family. GGUF files keep their names, shards their folder. The one
artifact of a family of folders lies at the top, where its readers look; several lie in a folder
each. The published manifest lists the published artifacts, under these names.
"""

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from quantkit.building.entries import require_sound
from quantkit.building.manifest import NAME as MANIFEST
from quantkit.building.manifest import file_of, read_manifest
from quantkit.checkpoint.converter.own import without_place
from quantkit.checkpoint.names import without_shard
from quantkit.core.errors import PublishError
from quantkit.core.files import has_file
from quantkit.core.printable import quoted
from quantkit.core.units import format_size
from quantkit.planning.quants import Quant, find_quants, is_size, known_quants, searched_quant

CARD = "README.md"
SUMS = "SHA256SUMS"
PICTURE = "size-against-kld.png"
IMATRIX = "imatrix.gguf"
SIGNATURE = "model.sig"
LICENSE = "LICENSE"
OURS = (CARD, SUMS, MANIFEST, PICTURE, IMATRIX, SIGNATURE, LICENSE)

MOST_FILE_BYTES = 50 * 10**9
"""What the Hub long took at most, and what its mirrors and many clients still do."""

PLACEHOLDER = "NAMESPACE/NAME"  # what commands that we suggest have for a name
FAMILIES = {"gguf": "GGUF", "gptq": "GPTQ", "bnb": "bitsandbytes"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_LONGEST = 255


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of an artifact: where it lies, its path in the repository, and what it must be."""

    local: Path
    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PublishedArtifact:
    """One artifact to publish; ``entry`` is what the build's manifest says of it.

    ``folder`` is its folder in the repository, empty at the top.
    """

    name: str
    quant: Quant
    folder: str
    files: tuple[Placed, ...]
    entry: Mapping[str, Any]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.n_bytes for file in self.files)

    @property
    def is_projector(self) -> bool:
        """Whether it is the vision or audio part of a model, and not the model."""
        return self.entry.get("takes") is not None

    @property
    def passed(self) -> bool:
        """Whether its smoke test passed."""
        return bool((self.entry.get("smoke") or {}).get("ok"))


def check_repo_id(repo_id: str) -> None:
    """Check a repository's name against the Hub's rules.

    Raises:
        PublishError: it is not ``namespace/name``, or one of them breaks the rules.

    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        fine = repo_id.count("/") == 1 and repo_id != PLACEHOLDER
    except HFValidationError:
        fine = False
    if not fine:
        raise PublishError(
            f"{repo_id!r} is not a name for a repository; write namespace/name, of letters, "
            "digits, '-', '_' and '.', at most 96 characters, such as someone/Model-GGUF."
        )


def find_artifacts(
    folder: Path, repo_id: str, family: str | None = None, quants: Sequence[str] = ()
) -> tuple[PublishedArtifact, ...]:
    """The artifacts of a build that go into one repository, best first, a projector last.

    Args:
        folder: what ``quantkit build`` wrote.
        repo_id: where they go; its name tells the family where the build holds several.
        family: a key of ``FAMILIES``; None for the only one there is.
        quants: names to publish; none for all of the family. A projector goes with any.

    Raises:
        PublishError: there are none, or of several families, or a name or size breaks the rules.
        OutputError: the manifest is damaged.
        UnknownQuantError: a name stands for no quant.

    """
    if not has_file(folder / MANIFEST, error=PublishError):
        raise PublishError(
            f"{folder} has no {MANIFEST}, so what was built there is unknown; give the output "
            "folder of quantkit build."
        )
    manifest = read_manifest(folder)
    require_sound(manifest, folder / MANIFEST, "build it again")
    entries = manifest["artifacts"]
    by_family: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        quant = quant_of(entry)
        if quant is None:
            raise PublishError(
                f"{folder / MANIFEST} says that {quoted(name)} is {quoted(entry['quant'])}, which "
                "this version of quantkit does not know; build it again."
            )
        by_family.setdefault(quant.format, {})[name] = entry
    models = {
        format_: {name: entry for name, entry in found.items() if entry.get("takes") is None}
        for format_, found in by_family.items()
    }
    models = {format_: found for format_, found in models.items() if found}
    chosen = by_family.get(_choose_family(folder, repo_id, models, family), {})
    if quants:
        wanted = _wanted(quants)
        there = (entry for entry in chosen.values() if entry.get("takes") is None)
        missing = wanted - {entry["quant"] for entry in there}
        if missing:
            raise PublishError(f"{folder} holds no {', '.join(sorted(missing))}; build it first.")
        chosen = {
            name: entry
            for name, entry in chosen.items()
            if entry["quant"] in wanted or entry.get("takes") is not None
        }
    _check_one_model(folder, chosen)
    return in_order(
        _place(folder, name, quant, entry, alone=len(chosen) == 1)
        for name, entry in chosen.items()
        if (quant := quant_of(entry)) is not None
    )


def quant_of(entry: Mapping[str, Any]) -> Quant | None:
    """The quant of a manifest's entry, by its name or by its recipe; None for an unknown one."""
    recipe = entry.get("recipe")
    if recipe is not None:
        return searched_quant(recipe["base"], entry["bits_per_weight"])
    return known_quants().get(str(entry.get("quant")))


def _wanted(names: Iterable[str]) -> set[str]:
    """The quants that names and groups stand for; sizes such as ``4.25bpw`` stand for themselves.

    Raises:
        UnknownQuantError: a name stands for none.

    """
    parts = [part.strip().lower() for listed in names for part in listed.split(",")]
    sizes = {part for part in parts if is_size(part)}
    others = [part for part in parts if part not in sizes]
    return sizes | ({quant.name for quant in find_quants(others)} if any(others) else set())


def in_order(artifacts: Iterable[PublishedArtifact]) -> tuple[PublishedArtifact, ...]:
    """Artifacts of one model, best first, projectors last."""
    rank = list(known_quants())

    def place(artifact: PublishedArtifact) -> int:
        """A searched one stands by its base."""
        quant = artifact.quant
        return rank.index(quant.mixture if quant.searched else quant.name)

    return tuple(sorted(artifacts, key=lambda a: (a.is_projector, place(a), a.name)))


def _choose_family(
    folder: Path, repo_id: str, by_family: Mapping[str, Any], wish: str | None
) -> str:
    if not by_family:
        raise PublishError(f"{folder} holds no finished artifact; build one with quantkit build.")
    if wish is not None:
        if wish not in by_family:
            raise PublishError(f"{folder} holds no {FAMILIES[wish]}; build it first.")
        return wish
    if len(by_family) == 1:
        return next(iter(by_family))
    hinted = [f for f in by_family if f in repo_id.rpartition("/")[2].lower()]
    if len(hinted) == 1:
        return hinted[0]
    held = [family for family in FAMILIES if family in by_family]
    names = ", ".join(FAMILIES[family] for family in held)
    types = " or ".join(f"--format {family}" for family in held)
    raise PublishError(
        f"{folder} holds {names}, and each goes into a repository of its own; say which this one "
        f"is for with {types}."
    )


def _check_one_model(folder: Path, entries: Mapping[str, Any]) -> None:
    """One repository is about one model: all its artifacts were made of the same weights."""
    by_weights: dict[str, str] = {}
    for name, entry in entries.items():
        sums = [file.get("sha256") for file in entry["source"]["weights"]]
        by_weights.setdefault(json.dumps(sums), name)
    if len(by_weights) > 1:
        raise PublishError(
            f"{folder} holds artifacts of different weights ({', '.join(by_weights.values())}); "
            "choose those of one model with --quant, or build them into a folder each."
        )


def _place(folder: Path, name: str, quant: Quant, entry: Any, *, alone: bool) -> PublishedArtifact:
    at_top = quant.format != "gguf" and alone
    placed = []
    for file in entry["files"]:
        path = file["name"]
        check_path(path)
        if quant.format != "gguf":
            inside, _, rest = path.partition("/")
            if inside != name or not rest:
                raise PublishError(
                    f"{folder / MANIFEST} puts {path} outside of {name}; build it again."
                )
            if rest == CARD:
                continue  # how to load it is part of the card
            path = rest if at_top else path
        if path in OURS and path != LICENSE:
            raise PublishError(f"{path} is the name of a file that quantkit adds; rename yours.")
        if file["bytes"] > MOST_FILE_BYTES:
            raise PublishError(
                f"{file['name']} has {format_size(file['bytes'])}, more than the "
                f"{format_size(MOST_FILE_BYTES)} that every host accepts; build it again with "
                "--shard-size 45GB."
            )
        local = file_of(folder, file["name"])
        placed.append(Placed(local, path, file["bytes"], file["sha256"]))
    if quant.format == "gguf":
        for file in placed:
            _check_gguf_name(file.path, quant)
    in_folder = "" if at_top else str(PurePosixPath(placed[0].path).parent).strip(".")
    return PublishedArtifact(name, quant, in_folder, tuple(placed), entry)


def check_path(path: str) -> None:
    """Check that a path in a manifest or repository leads nowhere else, on any system.

    Raises:
        PublishError: it does not.

    """
    parts = path.split("/")
    fine = all(_NAME.fullmatch(part) and not part.endswith(".") for part in parts)
    if not fine or len(path) > _LONGEST:
        raise PublishError(
            f"{quoted(path)} is not a valid file name in a repository: it may hold letters, "
            "digits, '.', '_', '+' and '-'; build again with another --name."
        )


def _check_gguf_name(path: str, quant: Quant) -> None:
    """The GGUF naming rules as publishers keep them: the encoding ends the name, shards follow."""
    stem = without_shard(PurePosixPath(path).name)
    fine = path.endswith(".gguf") and stem.upper().endswith("-" + quant.name.upper())
    if not fine:
        raise PublishError(
            f"{path} breaks the rules for names of GGUF files: it must end with "
            f"-{quant.in_file_names}.gguf; build it again."
        )


def published_manifest(artifacts: Iterable[PublishedArtifact]) -> bytes:
    """The manifest of a repository: the build's, of these artifacts, under their new names.

    Folders of the machine that built are left out.
    """
    described = {}
    for artifact in artifacts:
        entry = copy.deepcopy(dict(artifact.entry))
        entry["files"] = [
            {"name": file.path, "bytes": file.n_bytes, "sha256": file.sha256}
            for file in artifact.files
        ]
        entry["source"].pop("path", None)
        if isinstance(describer := entry["source"].get("described_by"), str):
            entry["source"]["described_by"] = without_place(describer)
        calibration = entry.get("calibration")
        if isinstance(calibration, dict) and isinstance(calibration.get("text"), list):
            calibration["text"] = [re.split(r"[\\/]", str(n))[-1] for n in calibration["text"]]
        described[artifact.name] = entry
    text = json.dumps({"version": 1, "artifacts": described}, indent=2, ensure_ascii=False)
    return (text + "\n").encode()


def write_sums(sums: Mapping[str, str]) -> bytes:
    """``SHA256SUMS`` as sha256sum reads it, from sha256 by path."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()


def read_sums(data: bytes) -> dict[str, str]:
    """sha256 by path of a ``SHA256SUMS``.

    Raises:
        PublishError: a line is not a checksum, or names a path that leads elsewhere.

    """
    sums = {}
    for line in data.decode(errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise PublishError(f"{SUMS} has a line that is not a checksum: {quoted(line)}.")
        check_path(match[2])
        sums[match[2]] = match[1]
    return sums
