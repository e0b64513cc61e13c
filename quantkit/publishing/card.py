"""The card of a repository: facts in, Markdown out.

Nothing is read or asked here. What comes from the model's author is data to the template, escaped
for the place where it stands. What is not known is left out.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quantkit.checkpoint.converter.own import is_own, without_place
from quantkit.checkpoint.tokenizer.deviations import describe_tokens
from quantkit.core.files import read_file
from quantkit.core.packages import DISTRIBUTION
from quantkit.core.units import format_count, format_size
from quantkit.publishing.fits import Fits
from quantkit.publishing.layout import FAMILIES, PICTURE, SUMS, PublishedArtifact
from quantkit.publishing.markdown import code, escaped, fenced
from quantkit.publishing.measured import Measured
from quantkit.publishing.metadata import SourceFacts
from quantkit.recipes.contest import describe_choice
from quantkit.recipes.file import to_toml
from quantkit.verification.compare import Result
from quantkit.verification.proof import describe_proof

_TEMPLATE = Path(__file__).with_name("card.md.jinja")


_EXAMPLES = ("q4_k_m", "q5_k_m", "q4_k_s", "iq4_xs", "q6_k", "q3_k_m", "q8_0")
_OURS = ("llama", "mistral", "mixtral")  # that transformers 4 and auto-gptq have been tried with
_TAGS = {
    "gguf": ("gguf", "llama.cpp"),
    "gptq": ("gptq",),
    "bnb": ("bitsandbytes",),
}


@dataclass(frozen=True, slots=True)
class ImatrixNote:
    """An importance matrix: its sha256, what it was made of as it says itself, whether it is here.

    ``text`` and ``chunks`` are None where only the manifest's name of it is known.
    """

    name: str
    sha256: str
    text: str | None = None
    chunks: int | None = None
    published: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a card says, of one repository."""

    repo_id: str
    artifacts: tuple[PublishedArtifact, ...]
    source: SourceFacts
    imatrices: tuple[ImatrixNote, ...] = ()
    measured: Measured | None = None
    fits: Fits | None = None
    prompt: str | None = None
    has_picture: bool = False
    has_license: bool = False
    is_signed: bool = False

    @property
    def models(self) -> tuple[PublishedArtifact, ...]:
        """The artifacts that are the model."""
        return tuple(artifact for artifact in self.artifacts if not artifact.is_projector)

    @property
    def projectors(self) -> tuple[PublishedArtifact, ...]:
        """Those that are its vision or audio part."""
        return tuple(artifact for artifact in self.artifacts if artifact.is_projector)

    @property
    def family(self) -> str:
        """The format family of all its artifacts."""
        return self.artifacts[0].quant.format


def render_card(facts: Facts) -> str:
    """The README.md of a repository, front matter and all."""
    text = _template().render(_context(facts), distribution=DISTRIBUTION)
    return f"---\n{front_matter(facts)}\n---\n\n{text}"


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701 - no HTML: `md`, `code`, `fenced` escape for Markdown
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"md": escaped, "code": code, "fenced": fenced}
    return environment.from_string(read_file(_TEMPLATE).decode())


def front_matter(facts: Facts) -> str:
    """The card's YAML."""
    from huggingface_hub import ModelCardData

    source = facts.source
    other = source.license is None or source.license == "other"
    link = source.license_link or ("LICENSE" if facts.has_license else None)
    fields: dict[str, Any] = {
        "base_model": source.original,
        "base_model_relation": "quantized" if source.original else None,
        "quantized_by": facts.repo_id.partition("/")[0],
        "library_name": _library(facts),
        "pipeline_tag": source.pipeline_tag,
        "license": source.license or "other",
        "license_name": source.license_name if other else None,
        "license_link": link if other or source.license_link else None,
        "language": list(source.languages) or None,
        "tags": _tags(facts),
        "datasets": list(source.datasets) or None,
    }
    known = {key: value for key, value in fields.items() if value is not None}
    return ModelCardData(**known).to_yaml().strip()


def _library(facts: Facts) -> str | None:
    """What the Hub's own snippet is to load it with; None where no such program does."""
    first = facts.artifacts[0].entry
    if facts.family != "gptq":
        return {"gguf": "gguf", "bnb": "transformers"}[facts.family]
    if str(first["source"].get("family")).lower() in _OURS:
        return "auto-gptq"
    return None if first.get("experts") else "transformers"


def _tags(facts: Facts) -> list[str]:
    tags = [*facts.source.tags, *_TAGS[facts.family], "quantized", "quantkit"]
    if facts.imatrices:
        tags.append("imatrix")
    return list(dict.fromkeys(tag.lower() for tag in tags))


def _context(facts: Facts) -> dict[str, Any]:
    artifacts = facts.models
    example = _example(artifacts, facts)
    first = artifacts[0].entry
    family = str(first["source"].get("family")).lower()
    versions = {str(a.entry.get("quantkit")) for a in artifacts}
    rows = [_row(artifact, facts) for artifact in artifacts]
    tools = {tool for row in rows for tool in row["tools"].items()}
    return {
        "repo": facts.repo_id,
        "owner": facts.repo_id.partition("/")[0],
        "family": facts.family,
        "format": FAMILIES[facts.family],
        "title": title_of(artifacts),
        "source": facts.source,
        "source_name": facts.source.original or first["source"].get("name", ""),
        "parameters": format_count(first["parameters"]),
        "is_moe": bool(first.get("experts")) or family == "mixtral",
        "is_ours": family in _OURS,
        "rows": rows,
        "chosen": next(row for row in rows if row["name"] == example.name),
        "kernels": list(dict.fromkeys(row["kernel"] for row in rows if row["kernel"])),
        "tools": sorted(tools),
        "llamas": list(dict.fromkeys(row["llama"] for row in rows if row["llama"])),
        "forced": [a.name for a in facts.artifacts if not a.passed],
        "projectors": [_projector(artifact) for artifact in facts.projectors],
        "token_comparisons": _token_comparisons(artifacts),
        "proofs": _proofs(artifacts),
        "remarks": list(dict.fromkeys(r for a in artifacts for r in a.entry.get("remarks") or ())),
        "embeds": _embeds(artifacts),
        "measured": facts.measured.comparison if facts.measured else None,
        "unhealthy": [
            (found.subject.name, found.verdict.reason)
            for found in (facts.measured.comparison.results if facts.measured else ())
            if not found.verdict.ok
        ],
        "fits": facts.fits,
        "picture": PICTURE if facts.has_picture else None,
        "example": example,
        "example_file": example.files[0].path,
        "example_is_split": len(example.files) > 1,
        "tag": example.quant.in_file_names,
        "recipes": [
            (a.name, to_toml(a.entry["recipe"]).rstrip()) for a in artifacts if a.quant.searched
        ],
        "choices": _choices(artifacts),
        "local": facts.repo_id.partition("/")[2],
        "prompt": facts.prompt,
        "versions": sorted(versions),
        "weights": first["source"].get("weights", ()),
        "describers": _describers(artifacts),
        "imatrices": facts.imatrices,
        "calibrations": _calibrations(artifacts),
        "rebuild": _rebuild(facts),
        "sums": SUMS,
        "checksums": [
            (file.path, file.sha256)
            for artifact in facts.artifacts
            for file in artifact.files
            if file.path.endswith((".gguf", ".safetensors"))
        ],
        "has_license": facts.has_license,
        "is_signed": facts.is_signed,
    }


def _choices(artifacts: Sequence[PublishedArtifact]) -> list[tuple[str, str]]:
    """How artifacts were chosen that were not asked for by name, with what was measured of each."""
    return [
        (artifact.name, describe_choice(artifact.entry.get("choice") or {}))
        for artifact in artifacts
        if artifact.quant.searched or "choice" in artifact.entry
    ]


def _describers(artifacts: Sequence[PublishedArtifact]) -> list[str]:
    """Which converters said what the model's tensors are; none for families of ours."""
    found = (artifact.entry["source"].get("described_by") for artifact in artifacts)
    return list(dict.fromkeys(without_place(name) for name in found if name))


def _embeds(artifacts: Sequence[PublishedArtifact]) -> bool:
    """Whether these were seen to embed texts, and do nothing else."""
    records = [(artifact.entry.get("smoke") or {}).get("details") or {} for artifact in artifacts]
    return any("embeddings" in record for record in records)


def title_of(artifacts: Sequence[PublishedArtifact]) -> str:
    """The model's name as its artifacts bear it."""
    artifact = artifacts[0]
    quant = re.escape(artifact.quant.name)
    return re.sub(f"-{quant}$", "", artifact.name, flags=re.IGNORECASE)


def _row(artifact: PublishedArtifact, facts: Facts) -> dict[str, Any]:
    entry = artifact.entry
    found = facts.measured.rows.get(artifact.name) if facts.measured else None
    fit = facts.fits.by_name.get(artifact.name) if facts.fits else None
    smoke = entry.get("smoke") or {}
    llama = (smoke.get("details") or {}).get("llama.cpp") or {}
    files = len(artifact.files)
    return {
        "name": artifact.name,
        "quant": artifact.quant.name,
        "link": artifact.folder if files > 1 else artifact.files[0].path,
        "shown": f"{artifact.folder or artifact.name}/" if files > 1 else artifact.files[0].path,
        "n_files": files,
        "size": format_size(artifact.n_bytes),
        "bits": f"{entry['bits_per_weight']:.2f}",
        **_figures(found),
        "fits": _fit(fit) if fit else "",
        "good_for": artifact.quant.good_for,
        "beaten_by": beaten.quant.name if (beaten := _better(artifact, facts)) else None,
        "smoke": smoke.get("verdict"),
        "tokens": (smoke.get("details") or {}).get("generated_tokens"),
        "texts": ((smoke.get("details") or {}).get("embeddings") or {}).get("texts"),
        "llama": llama.get("version"),
        "kernel": _kernel(entry.get("kernel") or {}),
        "tools": entry.get("tools") or {},
    }


def _projector(artifact: PublishedArtifact) -> dict[str, Any]:
    """What is said of a vision or audio part."""
    takes = artifact.entry.get("takes") or ()
    given = {"vision": "images", "audio": "sound"}
    option = {"vision": "--image picture.jpg", "audio": "--audio sound.wav"}
    return {
        "name": artifact.name,
        "file": artifact.files[0].path,
        "size": format_size(artifact.n_bytes),
        "type": artifact.quant.name,
        "takes": " and ".join(given[part] for part in takes) or "other input",
        "option": next((option[part] for part in takes), ""),
        "smoke": (artifact.entry.get("smoke") or {}).get("verdict"),
    }


def _token_comparisons(artifacts: Sequence[PublishedArtifact]) -> list[str]:
    """What the smoke tests found of llama.cpp's tokens, once each."""
    details = [(artifact.entry.get("smoke") or {}).get("details") or {} for artifact in artifacts]
    records = [found["tokens"] for found in details if "tokens" in found]
    return list(dict.fromkeys(map(describe_tokens, records)))


def _proofs(artifacts: Sequence[PublishedArtifact]) -> list[str]:
    """How conversions were proven, once each."""
    details = [(artifact.entry.get("smoke") or {}).get("details") or {} for artifact in artifacts]
    records = [found["proof"] for found in details if "proof" in found]
    return list(dict.fromkeys(map(describe_proof, records)))


def _kernel(kernel: Mapping[str, Any]) -> str:
    words = [str(kernel[key]) for key in ("name", "version") if key in kernel]
    search = kernel.get("search")
    return " ".join(words) + (f", search: {search}" if search else "")


def _figures(found: Result | None) -> dict[str, str]:
    """What the two columns of a comparison say of an artifact."""
    if found is None or (found.measures is None and found.cosines is None):
        return {"kld": "", "ppl_ratio": ""}
    if found.is_reference:
        return {"kld": "reference", "ppl_ratio": ""}
    if found.cosines is not None:
        return {"kld": f"{found.cosines.mean:.5f}", "ppl_ratio": f"{found.cosines.worst:.5f}"}
    m = found.measures
    assert m is not None  # noqa: S101 - one of the two is there
    kld = f"{max(m.kld, 0):.5f} \u00b1 {m.kld_pm:.5f}"
    return {"kld": kld, "ppl_ratio": f"{m.ppl_ratio:.4f}"}


def _fit(fit: Any) -> str:
    gpu = f"{fit.gpu} GB GPU" if fit.gpu else ""
    ram = f"{fit.ram} GB RAM" if fit.ram else ""
    return " or ".join(part for part in (gpu, ram) if part)


def _example(artifacts: Sequence[PublishedArtifact], facts: Facts) -> PublishedArtifact:
    """What to take in doubt: the usual choice of what did not fail, or what is better at less."""
    rows = facts.measured.rows if facts.measured else {}
    sound = [a for a in artifacts if a.passed and (a.name not in rows or rows[a.name].verdict.ok)]
    by_quant = {artifact.quant.name: artifact for artifact in sound or artifacts}
    usual = next((by_quant[name] for name in _EXAMPLES if name in by_quant), None)
    usual = usual or next(iter(by_quant.values()))
    return _better(usual, facts) or usual


def _better(artifact: PublishedArtifact, facts: Facts) -> PublishedArtifact | None:
    """The closest healthy artifact that is smaller, and closer by more than chance explains."""
    rows = facts.measured.rows if facts.measured else {}
    own = rows.get(artifact.name)
    if own is None or own.measures is None or own.is_reference:
        return None
    better = []
    for other in facts.models:
        found = rows.get(other.name)
        if found and found.measures and found.verdict.ok and other.n_bytes <= artifact.n_bytes:
            gain = own.measures.kld - found.measures.kld
            if gain > math.hypot(own.measures.kld_pm, found.measures.kld_pm):
                better.append((found.measures.kld, other))
    return min(better, key=lambda one: one[0], default=(0.0, None))[1]


def _calibrations(artifacts: Sequence[PublishedArtifact]) -> list[dict[str, Any]]:
    found = []
    for artifact in artifacts:
        calibration = artifact.entry.get("calibration")
        if isinstance(calibration, Mapping):
            texts = [re.split(r"[\\/]", str(name))[-1] for name in calibration["text"]]
            found.append({**calibration, "name": artifact.name, "texts": ", ".join(texts)})
    return found


def _rebuild(facts: Facts) -> str:
    """The command with all that the manifest records of how this was built."""
    source = facts.source
    at = f"@{source.commit}" if source.commit else ""
    gguf = source.files[0] if source.files else None
    place = gguf or "CHECKPOINT"
    if source.repo_id:
        place = f"{source.repo_id}/{gguf}{at}" if gguf else f"{source.repo_id}{at}"
    words = [f"quantkit build {shlex.quote(place)}"]
    words += [
        f"--recipe {artifact.name}.toml"
        if artifact.quant.searched
        else f"--quant {artifact.quant.name}"
        for artifact in facts.models
    ]
    words += [f"--mmproj {artifact.quant.name}" for artifact in facts.projectors]
    entry = facts.artifacts[0].entry
    searches = {(a.entry.get("kernel") or {}).get("search") for a in facts.artifacts}
    if "best" in searches:
        words.append("--search best")
    if is_own(entry["source"].get("described_by") or ""):
        words.append("--llama-cpp DIR")
    mtp = entry["source"].get("mtp")
    if mtp is not None:
        words.append("--mtp" if mtp else "--no-mtp")
    if facts.imatrices:
        words.append(f"--imatrix {facts.imatrices[0].name}")
    config = entry.get("quantization_config") or {}
    if (
        facts.family == "gptq"
        and {"group_size", "damp_percent", "desc_act", "sym"} <= config.keys()
    ):
        words.append(f"--group-size {config['group_size']} --damp {config['damp_percent']}")
        words.append("--desc-act" if config["desc_act"] else "--no-desc-act")
        words.append("--sym" if config["sym"] else "--asym")
    if facts.family == "bnb" and config.get("bnb_4bit_use_double_quant"):
        words.append("--double-quant")
    return " \\\n  ".join(words)
