"""A GPTQ artifact from a checkpoint and text: calibrated, rounded and written layer by layer."""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.building import manifest
from quantkit.building.artifact import Artifact, Check
from quantkit.building.output import (
    PartialArtifact,
    check_names,
    check_space,
    locked,
    naming_failures,
    remove,
    trial_of,
)
from quantkit.building.source import stamp
from quantkit.building.work import Work
from quantkit.calibration.journaled import Run
from quantkit.calibration.lockstep.pieces import find_pieces
from quantkit.calibration.lockstep.visitors import Visitors
from quantkit.calibration.quantizer import Quantizer, Recipe
from quantkit.calibration.settings import Settings, Step, digest, find_device, identify
from quantkit.calibration.text import Corpus
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.checkpoint.hub_rows import with_rows
from quantkit.checkpoint.rows import open_rows
from quantkit.core.errors import CheckpointError, OutputError, WeightsError
from quantkit.core.files import open_file
from quantkit.core.printable import quoted
from quantkit.core.version import __version__
from quantkit.core.writing import open_written, refuse_links
from quantkit.encodings.encoding import encoding
from quantkit.encodings.gptq import Grid, Rounded
from quantkit.encodings.kernel import load_kernel
from quantkit.encodings.sound import is_sound
from quantkit.families.model import Model
from quantkit.formats.folder import FolderLayout, StoredMatrix
from quantkit.formats.gptq.packing import pack
from quantkit.formats.gptq.plan import GptqOptions, bits_of, is_packed, lay_out_gptq
from quantkit.formats.gptq.stored import PARTS
from quantkit.planning.quants import Quant

_STATE = ".calibration"
_READ = 8 * 2**20


@dataclass(frozen=True, slots=True)
class GptqBuild:
    """One artifact to make: of what, on which text, how."""

    checkpoint: Checkpoint
    model: Model
    corpus: Corpus
    settings: Settings
    recipe: Recipe
    layout: FolderLayout
    work: Work
    identity: Mapping[str, Any]


def plan_gptq(
    checkpoint: Checkpoint,
    model: Model,
    corpus: Corpus,
    quant: Quant,
    options: GptqOptions,
    settings: Settings,
    *,
    base_name: str,
    shard_size: int | None = None,
) -> GptqBuild:
    """Plan one artifact. Reads no weights.

    Raises:
        PlanError: the model's matrices do not divide into such groups.
        CalibrationError: there is no such device.

    """
    find_device(settings.device)
    layout = lay_out_gptq(checkpoint, model, quant, options, base_name, shard_size)
    check_names([layout])
    grid = Grid(bits_of(quant), options.group_size, options.symmetric)
    recipe = Recipe(grid, options.act_order, options.damp, options.scale_search)
    identity = {
        **identify(checkpoint, corpus, settings),
        "recipe": asdict(recipe),
        "layout": layout.digest,
    }
    # What an artifact holds depends on the text too.
    known = {key: value for key, value in identity.items() if key not in ("source", "device")}
    layout = replace(layout, digest=digest(known))
    work = Work(checkpoint, model, base_name, (layout,), load_kernel("ggml"))
    return GptqBuild(checkpoint, model, corpus, settings, recipe, layout, work, identity)


def build_gptq(
    build: GptqBuild,
    out: Path,
    *,
    check: Callable[[Path], Check] | None = None,
    report: Callable[[Step], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    hashed: bool = False,
) -> Artifact:
    """Make one artifact in a folder; a finished one is left alone, an interrupted one resumes.

    Every matrix is written as soon as it is rounded. The folder bears a partial name until all of
    it has been read back and checked.

    Args:
        build: what to make.
        out: the output folder.
        check: called with the artifact's folder before it is renamed; one that it does not accept
            ends as ``.rejected``.
        report: called with the progress.
        say: told what of an interrupted run is lost.
        hashed: compare the sha256 of one that already exists, not size and time alone.

    Raises:
        CalibrationError, CheckpointError: the model cannot be run over the text, or its weights
            changed meanwhile.
        OutputError: the folder cannot take the result.
        Interrupted: Ctrl-C; what was done is kept.

    """
    layout = build.layout
    with locked(out):
        if how := manifest.find_finished(out, build.work, layout, hashed=hashed):
            entry = manifest.sound_entries(out)[layout.name]
            path = out / layout.name
            return Artifact(layout, path, entry, None, fresh=False, recognized=how)
        artifact = PartialArtifact(out, layout)
        refuse_links(artifact.final, out / manifest.NAME)
        if artifact.final.exists():
            raise OutputError(
                f"{artifact.final} already exists and was not built from this checkpoint with "
                "these settings and this text; move it away or choose another folder with -o."
            )
        with naming_failures(out, lambda: artifact.missing):
            return _Build(build, artifact, out).execute(check, report, say)


class _Build:
    """One artifact being made, in a folder that is locked."""

    def __init__(self, build: GptqBuild, artifact: PartialArtifact, out: Path) -> None:
        self._build = build
        self._artifact = artifact
        self._out = out
        self._matrices: dict[tuple[int | None, str, int], StoredMatrix] = {
            (stored.target.layer, stored.target.role, number): matrix
            for stored in build.layout.plan.tensors
            for number, matrix in enumerate(stored.matrices)
        }
        self._crcs: dict[str, int] = {}  # of the layer at hand, by tensor
        self._run = Run(
            build.checkpoint,
            build.corpus,
            build.settings,
            artifact.partial / _STATE,
            build.identity,
            replaces=True,
        )
        rounded = tuple(x.target for x in build.layout.plan.tensors if is_packed(x))
        of_these = replace(build.model, targets=rounded)
        self._pieces = find_pieces(self._run.forward, build.checkpoint, of_these)

    def execute(
        self,
        check: Callable[[Path], Check] | None,
        report: Callable[[Step], None],
        say: Callable[[str], None],
    ) -> Artifact:
        artifact, run = self._artifact, self._run
        whole = all(
            path.is_file() and path.stat().st_size == file.n_bytes
            for path, file in zip(artifact.paths, artifact.layout.files, strict=True)
        )
        if not whole:
            remove(run.folder)  # layers that it has done would be missing
        run.folder.mkdir(parents=True, exist_ok=True)
        remove(trial_of(artifact.partial))  # of a run that was killed
        trial = artifact.layout.trial_bytes if check is not None else 0
        check_space(self._out, artifact.missing + max(run.n_bytes, trial))
        try:
            artifact.open()
            quantizer = Quantizer(
                self._build.recipe,
                run.forward.device,
                {parameter for parameter, _ in self._pieces},
                self._keep,
                {at: tuple(piece.where for piece in some) for at, some in self._pieces.items()},
            )
            fewest = self._build.settings.fewest_tokens
            visitors = Visitors(replacer=quantizer, fewest_tokens=fewest)
            crcs = self._copy_unquantized()  # first: a damaged one is found before the long run
            run.execute(visitors, self._finish_layer, report, say)
            for record in run.records:
                crcs |= record
            artifact.write_headers()
        finally:
            artifact.close()
        files = [self._verify(number, crcs) for number in range(len(artifact.paths))]
        return self._publish(files, check)

    def _keep(self, parameter: str, expert: int | None, rows: slice, rounded: Rounded) -> None:
        """Write a matrix that has been rounded."""
        (piece,) = (piece for piece in self._pieces[parameter, expert] if piece.where == rows)
        matrix = self._matrices[piece.layer, piece.role, piece.number]
        levels, scales, zeros = (
            x.cpu().numpy() for x in (rounded.levels, rounded.scales, rounded.zeros)
        )
        packed = pack(levels, scales, zeros, self._build.recipe.grid.bits)
        module = matrix.name.removesuffix("weight")
        for part in PARTS:
            data = getattr(packed, part)
            self._crcs[module + part] = self._write(module + part, data)

    def _finish_layer(self, _layer: int) -> dict[str, int]:
        self._artifact.sync()
        crcs, self._crcs = self._crcs, {}
        return crcs

    def _copy_unquantized(self) -> dict[str, int]:
        """Write what stays as it is; a CRC-32 of each tensor.

        Raises:
            WeightsError: a weight is not finite.

        """
        crcs = {}
        checkpoint = self._build.checkpoint
        read_rows = open_rows(with_rows(checkpoint))
        for stored in self._build.layout.plan.tensors:
            if is_packed(stored):
                continue
            for matrix, block in zip(stored.matrices, stored.target.blocks, strict=True):
                above = (block.matrix or 0) * checkpoint.tensors[block.source].shape[-2:][0]
                raw = read_rows(block.source, above + block.row, block.rows)
                sound = is_sound(raw, encoding(checkpoint.tensors[block.source].dtype))
                if not sound and not stored.target.is_limit:
                    raise WeightsError(
                        f"{quoted(block.source)} of {checkpoint.tensors[block.source].file} has a "
                        "NaN or infinite weight; no quant of it can be right. Download the file "
                        "again or ask the model's author."
                    )
                crcs[matrix.name] = self._write(matrix.name, raw)
        return crcs

    def _write(self, name: str, data: NDArray[Any]) -> int:
        place = self._build.layout.place_of(name)
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        (crc,) = self._artifact.write([place], [raw.data])
        return crc

    def _verify(self, number: int, crcs: Mapping[str, int]) -> dict[str, Any]:
        """Read a file back, compare it with what was written; its entry in the manifest."""
        path, file = self._artifact.paths[number], self._build.layout.files[number]
        sha256 = hashlib.sha256()
        parts: list[tuple[int, int | None]] = [(len(file.header), zlib.crc32(file.header))]
        parts += [(tensor.n_bytes, crcs.get(tensor.name)) for tensor in file.tensors]
        with open_written(path) as stream:
            for n_bytes, crc in parts:
                found = 0
                for at in range(0, n_bytes, _READ):
                    data = stream.read(min(_READ, n_bytes - at))
                    sha256.update(data)
                    found = zlib.crc32(data, found)
                if found != crc:
                    remove(self._artifact.partial)
                    raise OutputError(
                        f"{path} does not read back as it was written; check the disk, then run "
                        "the same command again."
                    )
            if stream.read(1):
                raise OutputError(f"{path} is longer than it was written; delete it.")
        name = f"{self._build.layout.folder}/{file.name}"
        return {
            "name": name,
            "bytes": file.n_bytes,
            "sha256": sha256.hexdigest(),
            "modified_ns": stamp(path)[1],
        }

    def _publish(
        self, files: list[dict[str, Any]], check: Callable[[Path], Check] | None
    ) -> Artifact:
        """Check, record and rename."""
        build, artifact = self._build, self._artifact
        sources = {file: _sha256(file) for file in build.checkpoint.files}
        self._run.require_unchanged()
        entry = manifest.describe_artifact(build.work, build.layout, files, sources)
        entry["kernel"] = {"name": "gptq", "version": __version__}
        entry["calibration"] = {
            "text": list(build.corpus.names),
            "chunks": build.corpus.chunks,
            "context": build.corpus.context,
            "device": build.settings.device,
            "routing": [
                {"tokens": list(layer.tokens), "borrowed": list(layer.borrowed)}
                for layer in self._run.routing.values()
            ],
        }
        verdict = None
        if check is not None:
            verdict = check(artifact.runnable)
            entry["smoke"] = verdict.record
        remove(self._run.folder)
        if verdict is not None and not verdict.ok:
            return Artifact(build.layout, artifact.reject(), entry, verdict, fresh=True)
        manifest.add_artifact(self._out, build.layout.name, entry)
        return Artifact(build.layout, artifact.publish(), entry, verdict, fresh=True)


def _sha256(path: Path) -> str:
    before = stamp(path)
    with open_file(path, error=CheckpointError) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if stamp(path) != before:
        raise OutputError(f"{path} changed while it was read; run the same command again.")
    return digest
