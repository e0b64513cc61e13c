"""What ``--dry-run`` shows: every tensor and file of a build, to the byte."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from quantkit.cli.output import emit_json, escape, show_table
from quantkit.core.units import format_size

if TYPE_CHECKING:
    from quantkit.api.build import Planned
    from quantkit.api.contest import PlannedCandidate
    from quantkit.formats.layout import LaidOutFile, Layout


def show_plan(planned: "Planned", as_json: bool) -> None:
    """Print the plans of artifacts of one model, and that of its vision or audio part.

    Beneath them come the candidates that a build would choose from.
    """
    name, layouts, projector = planned.name, planned.layouts, planned.projector
    everything = layouts if projector is None else (*layouts, projector)
    if as_json:
        document: dict[str, Any] = {"name": name, "artifacts": list(map(_numbers, everything))}
        if planned.candidates:
            document["candidates"] = list(map(_candidate_numbers, planned.candidates))
        emit_json(document)
        return
    # What is for transformers may have other tensors than a GGUF of the same model.
    alike: dict[tuple[str, ...], list[Layout]] = {}
    for layout in layouts:
        named = tuple(tensor.target.name for tensor in layout.plan.tensors)
        alike.setdefault(named, []).append(layout)
    for some in alike.values():
        _show_tensors(name, some)
    if projector is not None:
        _show_tensors(projector.name, (projector,))
    files = Table(title="Files", title_justify="left")
    for heading in ("file", "bytes", "size", "bits per weight"):
        files.add_column(heading, justify="left" if heading == "file" else "right")
    for layout in everything:
        bits = f"{layout.plan.bits_per_weight:.2f}"
        for file, path in _files(layout):
            files.add_row(escape(path), f"{file.n_bytes:,}", format_size(file.n_bytes), bits)
            bits = ""  # of the artifact, not of each file
    show_table(files)
    if planned.candidates:
        _show_candidates(planned.candidates)


def _show_candidates(rows: "Sequence[PlannedCandidate]") -> None:
    table = Table(title="Candidates, of which the best is built", title_justify="left")
    table.add_column("candidate")
    for heading in ("quant", "bytes", "bits per weight"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.way, row.quant, f"{row.n_bytes:,}", f"{row.bits_per_weight:.4f}")
    show_table(table)


def _show_tensors(name: str, layouts: "Sequence[Layout]") -> None:
    table = Table(title=f"Plan of {escape(name)}", title_justify="left")
    table.add_column("tensor", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    for layout in layouts:
        table.add_column(layout.plan.quant.name, justify="right", no_wrap=True)
    for row in zip(*(layout.plan.tensors for layout in layouts), strict=True):
        target = row[0].target
        cells = (f"{tensor.encoding.name} {tensor.n_bytes:,}" for tensor in row)
        table.add_row(escape(target.name), " x ".join(map(str, target.shape)), *cells)
    show_table(table)


def _files(layout: "Layout") -> "Iterator[tuple[LaidOutFile, str]]":
    """The files of an artifact that stay, and their paths in the output folder."""
    for file in layout.final_files:
        yield file, f"{layout.folder}/{file.name}" if layout.folder else file.name


def _candidate_numbers(row: "PlannedCandidate") -> dict[str, Any]:
    return {("bytes" if key == "n_bytes" else key): value for key, value in asdict(row).items()}


def _numbers(layout: "Layout") -> dict[str, Any]:
    return {
        "name": layout.name,
        "quant": layout.plan.quant.name,
        **({"plan_sha256": layout.digest} if layout.digest else {}),
        "bytes": layout.n_bytes,
        "remarks": layout.remarks,
        "bits_per_weight": layout.plan.bits_per_weight,
        **layout.record,
        "files": [
            {
                "name": path,
                "bytes": file.n_bytes,
                "tensors": [
                    {
                        "name": tensor.name,
                        "shape": tensor.shape,
                        "encoding": tensor.dtype,
                        "bytes": tensor.n_bytes,
                        "offset": offset,
                    }
                    for tensor, offset in zip(file.tensors, file.offsets, strict=True)
                ],
            }
            for file, path in _files(layout)
        ],
    }
