"""``quantkit inspect``: what a checkpoint, a quantized folder or a GGUF holds."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from quantkit.cli.converter import LlamaCppOption, MtpOption
from quantkit.cli.output import JsonOption, emit_json, escape, note, show_table
from quantkit.core.tensors import SourceTensor
from quantkit.core.units import format_count, format_size

if TYPE_CHECKING:
    from quantkit.checkpoint.checkpoint import Checkpoint, Description
    from quantkit.families.model import Target

_LONGEST_VALUE = 100
_SUMMARY = (
    *("path", "kind", "family", "takes", "described_by"),
    *("parameters", "bytes", "bits_per_weight", "files"),
)


def inspect(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH|HUB_ID",
            help="A checkpoint, a GGUF, a build's folder or an artifact's, or "
            "HUB_ID[/FILE.gguf][@REVISION].",
        ),
    ],
    mtp: MtpOption = None,
    llama_cpp: LlamaCppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show family, parameters, metadata, and tensors by role and encoding. Reads headers only."""
    from quantkit.checkpoint.converter.wish import ConverterOptions
    from quantkit.checkpoint.open import holds_weights, open_checkpoint, open_source, refuse_idle
    from quantkit.formats.dequantized import is_own_artifact
    from quantkit.verification.subjects import holds_artifacts

    wish = ConverterOptions(llama_cpp, mtp=mtp, say=note)
    path = open_source(place, wish)
    if not isinstance(path, Path):
        facts = _checkpoint(path, place) if path.header is None else _split_gguf(path, place)
    elif path.is_file():
        facts = _gguf(path)
    elif path.is_dir() and not holds_weights(path) and holds_artifacts(path):
        facts = _artifacts(path)
    elif path.is_dir() and is_own_artifact(path):
        facts = _quantized(path)
    else:
        facts = _checkpoint(open_checkpoint(path, wish), place)
    if "described_by" not in facts:
        refuse_idle(wish, place)
    if as_json:
        emit_json(facts)
        return
    if "artifacts" in facts:
        _show_artifacts(facts)
        return
    summary = Table(show_header=False, box=None)
    for key in _SUMMARY:
        if key in facts:
            summary.add_row(key.replace("_", " "), escape(_for_people(key, facts[key])))
    show_table(summary)
    for remark in facts.get("remarks", ()):
        note(remark)
    metadata = Table(title="Metadata", title_justify="left", show_header=False)
    for key, value in facts["metadata"].items():
        metadata.add_row(escape(_shorten(key)), escape(_shorten(value)))
    show_table(metadata)
    table = Table(title="Tensors", title_justify="left")
    for heading in ("role", "encoding", "tensors", "parameters", "size"):
        table.add_column(heading, justify="left" if heading in ("role", "encoding") else "right")
    for row in facts["tensors"]:
        sizes = format_count(row["parameters"]), format_size(row["bytes"])
        table.add_row(escape(row["role"]), row["encoding"], str(row["count"]), *sizes)
    show_table(table)


def _gguf(path: Path) -> dict[str, Any]:
    """A GGUF: of a split one all shards, if the first is named; any other file alone."""
    from quantkit.checkpoint.gguf import read_header
    from quantkit.checkpoint.gguf_source import open_gguf
    from quantkit.checkpoint.names import is_first_file, shard_names

    if is_first_file(path.name) and len(shard_names(path)) > 1:
        return _split_gguf(open_gguf(path), str(path))
    header = read_header(path)
    tensors = [(_role(t.name), t.encoding.name, t.n_elements, t.n_bytes) for t in header.tensors]
    return _gguf_facts(str(path), header.metadata, tensors, path.stat().st_size)


def _split_gguf(checkpoint: "Checkpoint", place: str) -> dict[str, Any]:
    """A GGUF in several files, or on the Hub, of which the headers are here."""
    from quantkit.building.source import stamps_of

    assert checkpoint.header is not None  # noqa: S101 - it is a GGUF
    tensors = [
        (_role(t.name), t.dtype, t.n_elements, t.n_bytes) for t in checkpoint.tensors.values()
    ]
    size = sum(size for size, _ in stamps_of(checkpoint).values())
    facts = _gguf_facts(place, checkpoint.header.metadata, tensors, size)
    files = [file.name for file in checkpoint.files]
    return facts | ({"files": files} if len(files) > 1 else {})


def _gguf_facts(
    place: str, metadata: dict[str, Any], tensors: list[tuple[str, str, int, int]], size: int
) -> dict[str, Any]:
    from quantkit.building.projector import TAKES

    elements, n_bytes = sum(t[2] for t in tensors), sum(t[3] for t in tensors)
    takes = [part for part, key in TAKES.items() if metadata.get(key)]
    return {
        "path": place,
        "kind": "GGUF",
        "family": metadata.get("general.architecture"),
        **({"takes": takes} if metadata.get("general.type") == "mmproj" else {}),
        "parameters": elements,
        "bytes": size,
        "bits_per_weight": 8 * n_bytes / elements if elements else 0.0,
        "metadata": metadata,
        "tensors": _group(tensors),
    }


def _artifacts(folder: Path) -> dict[str, Any]:
    """What a build left, artifact by artifact."""
    from quantkit.verification.subjects import artifacts_in, projectors_in

    found = []
    for path in (*artifacts_in(folder), *projectors_in(folder)):
        facts = _quantized(path) if path.is_dir() else _gguf(path)
        del facts["metadata"], facts["tensors"]
        found.append({"name": path.name, **facts})
    return {"path": str(folder), "kind": "artifacts", "artifacts": found}


def _show_artifacts(facts: dict[str, Any]) -> None:
    table = Table(title=escape(facts["path"]), title_justify="left")
    table.add_column("artifact", no_wrap=True)
    table.add_column("kind")
    for heading in ("parameters", "size", "bits per weight"):
        table.add_column(heading, justify="right")
    for artifact in facts["artifacts"]:
        table.add_row(
            escape(artifact["name"]),
            artifact["kind"],
            format_count(artifact["parameters"]),
            format_size(artifact["bytes"]),
            f"{artifact['bits_per_weight']:.2f}",
        )
    show_table(table)


def _checkpoint(checkpoint: "Checkpoint", place: str) -> dict[str, Any]:
    from quantkit.building.source import stamps_of
    from quantkit.checkpoint.open import open_model

    for remark in checkpoint.remarks:
        note(remark)
    model = open_model(checkpoint)
    roles = {block.source: t.role for t in reversed(model.targets) for block in t.blocks}
    stored: Mapping[str, SourceTensor] = checkpoint.tensors
    described: dict[str, str] = {}
    if checkpoint.description is not None:
        stored = checkpoint.description.stored
        roles |= _roles_in_computed(checkpoint.description)
        described = {"described_by": checkpoint.description.version}
    tensors = [
        (roles.get(s.name, "unused"), s.dtype, s.n_elements, s.n_bytes) for s in stored.values()
    ]
    return {
        "path": place,
        "kind": "checkpoint",
        "family": model.family,
        **described,
        "parameters": model.n_parameters,
        "bytes": sum(size for size, _ in stamps_of(checkpoint).values()),
        "files": [file.name for file in checkpoint.files],
        "remarks": model.remarks,
        "metadata": checkpoint.config,
        "tensors": _group(tensors),
    }


def _roles_in_computed(description: "Description") -> dict[str, str]:
    """Of stored tensors that others are computed of, the role of the first that is."""
    made = [
        (target, first)
        for target in description.targets
        if target.name in description.computed
        for first in range(0, target.n_rows, _rows_of_matrix(target))
    ]
    units = [(target.name, first, _rows_of_matrix(target)) for target, first in made]
    places: dict[Path, list[tuple[int, str]]] = defaultdict(list)
    for (target, _), ranges in zip(made, description.rows.needs(units), strict=True):
        for part in ranges:
            places[part.file].append((part.start, target.role))
    for starts in places.values():
        starts.sort()
    roles: dict[str, str] = {}
    for tensor in description.stored.values():
        starts = places[tensor.file]
        at = bisect_left(starts, (tensor.offset, ""))
        if at < len(starts) and starts[at][0] < tensor.offset + tensor.n_bytes:
            roles[tensor.name] = starts[at][1]
    return roles


def _rows_of_matrix(target: "Target") -> int:
    return target.shape[-2] if len(target.shape) > 1 else 1


def _quantized(path: Path) -> dict[str, Any]:
    from quantkit.checkpoint.folder import open_quantized

    stored = open_quantized(path)
    family, names = _matrices_of(path, stored)
    parts: dict[str, list[Any]] = defaultdict(list)
    for tensor in stored.tensors.values():
        module = tensor.name
        while module and f"{module}.weight" not in names and module not in names:
            module = module.rpartition(".")[0]
        parts[f"{module}.weight" if f"{module}.weight" in names else module].append(tensor)
    unused = [(t.name, t.dtype, t.n_elements, t.n_bytes) for t in parts.pop("", [])]
    tensors = [
        (
            names[name][0],
            _stored_as([part.name for part in found], found[0].dtype),
            names[name][1],
            sum(part.n_bytes for part in found),
        )
        for name, found in parts.items()
    ]
    elements, n_bytes = sum(t[2] for t in tensors), sum(t[3] for t in tensors)
    return {
        "path": str(path),
        "kind": f"{stored.config['quantization_config'].get('quant_method')} artifact",
        "family": family,
        "parameters": elements,
        "bytes": sum(file.stat().st_size for file in stored.files),
        "bits_per_weight": 8 * n_bytes / elements if elements else 0.0,
        "files": [file.name for file in stored.files],
        "metadata": stored.config,
        "tensors": _group([*tensors, *(("unused", *rest) for _, *rest in unused)]),
    }


def _matrices_of(path: Path, stored: "Checkpoint") -> tuple[str, dict[str, tuple[str, int]]]:
    """The family of a quantized folder, and the role and size of each weight by its own name.

    Of no family of ours, a role is the last part of a module's name.
    """
    from quantkit.families import describe, is_known
    from quantkit.families.published import published_names
    from quantkit.formats.dequantized import open_artifact

    if not is_known(stored.config):
        tensors = open_artifact(path).checkpoint.tensors
        sizes = {
            name: (name.removesuffix(".weight").rpartition(".")[2], tensor.n_elements)
            for name, tensor in tensors.items()
        }
        return str(stored.config.get("model_type")), sizes
    # AutoGPTQ gives every layer a bias, of zeros where the model has none.
    own = [name for name in stored.tensors if not name.endswith(".bias")]
    model = describe(stored.config, own)
    return model.family, {
        name: (target.role, target.n_elements // max(1, len(target.blocks)))
        for target in model.targets
        for name in published_names(target)
    }


def _stored_as(names: list[str], dtype: str) -> str:
    """What a matrix is encoded as, from the tensors stored for it."""
    for ending, encoding in (
        (".quant_state.bitsandbytes__nf4", "NF4"),
        (".quant_state.bitsandbytes__fp4", "FP4"),
        (".SCB", "INT8"),
        (".qweight", "GPTQ"),
    ):
        if any(name.endswith(ending) for name in names):
            return encoding
    return dtype


def _role(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``attn_q``, and ``v.blk.3.attn_q.weight`` -> ``v.attn_q``."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return ".".join(parts[2:])
    if len(parts) > 3 and parts[1] == "blk":
        return ".".join([parts[0], *parts[3:]])
    return ".".join(parts)


def _group(tensors: Iterable[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for role, encoding, elements, n_bytes in tensors:
        group = groups[role, encoding]
        group[0] += 1
        group[1] += elements
        group[2] += n_bytes
    return [
        {"role": role, "encoding": encoding, "count": n, "parameters": elements, "bytes": n_bytes}
        for (role, encoding), (n, elements, n_bytes) in groups.items()
    ]


def _for_people(key: str, value: Any) -> str:
    match key:
        case "parameters":
            return f"{format_count(value)} ({value:,})"
        case "bytes":
            return f"{format_size(value)} ({value:,} bytes)"
        case "bits_per_weight":
            return f"{value:.2f}"
        case "takes":
            return f"{' and '.join(value)}, as the projector of a model (llama.cpp's --mmproj)"
        case "files":
            return f"{len(value)}: {_shorten(value)}"
    return str(value)


def _shorten(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"{len(value)} values: {', '.join(repr(item) for item in value[:4])}, ..."
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
