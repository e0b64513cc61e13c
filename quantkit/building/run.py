"""One execution of a build, in a folder that is locked."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from quantkit.building import manifest
from quantkit.building.artifact import Artifact, Check, Progress
from quantkit.building.encode import sessions
from quantkit.building.executor import Crcs, EncodeRequest, Executor, Workers
from quantkit.building.journal import Journal, Record, partial_paths
from quantkit.building.output import PartialArtifact, check_space, naming_failures, remove, trial_of
from quantkit.building.readback import ReadBackError, Written, written_to
from quantkit.building.shipping import ShardSender, Shipping, leaves_by_shards
from quantkit.building.source import Reading, identify_source, stamp, stamps_of
from quantkit.building.units import UNIT_ELEMENTS, cut_units
from quantkit.building.verification import verify
from quantkit.building.work import Work
from quantkit.checkpoint.checkpoint import Checkpoint
from quantkit.core.errors import (
    ClusterError,
    Interrupted,
    OutputError,
    SourceChangedError,
    WeightsError,
)
from quantkit.core.version import __version__
from quantkit.core.writing import refuse_links
from quantkit.formats.layout import Layout

_COMMIT_SECONDS = 5.0


SIDE_FILES = 2**20  # bytes of disk that the journal and the manifest may need


def refuse_taken(artifact: PartialArtifact, checkpoint: Checkpoint) -> None:
    """Refuse a place that holds something else, or what is to be read.

    Raises:
        OutputError: it does.

    """
    final = artifact.final
    if final.exists() and checkpoint.repo is None:
        places = {place for file in checkpoint.files for place in (file, file.parent)}
        if any(place.exists() and final.samefile(place) for place in places):
            raise OutputError(
                f"{final} is also the source, which is never overwritten; choose another folder "
                "with -o, or another name with --name."
            )
    if final.exists():
        raise OutputError(
            f"{artifact.final} already exists and was not built from this checkpoint "
            "with these settings; move it away or choose another folder with -o."
        )


class Run:
    """One execution of a build."""

    def __init__(
        self,
        work: Work,
        layouts: tuple[Layout, ...],
        out: Path,
        jobs: int,
        slots: int,
        ahead: int,
        report: Callable[[Progress], None],
        say: Callable[[str], None],
        shipping: Shipping | None,
        workers: Workers,
    ) -> None:
        self._work = work
        self._out = out
        self._ahead = ahead
        self._report = report
        self._say = say
        self._threads = max(1, min(jobs, slots))
        self._slots = slots
        self._workers = workers
        self._artifacts = workers.place(out, layouts)
        targets = [tensor.target for tensor in layouts[0].plan.tensors]
        self._units = cut_units(targets, work.checkpoint.tensors, work.checkpoint.description)
        self._trial = 0  # bytes of disk that checking a folder takes
        self._done, self._total = 0, sum(unit.n_bytes for unit in self._units)
        self._stamps = stamps_of(work.checkpoint)
        artifacts = {a.partial.name: self._identify(a.layout) for a in self._artifacts}
        self._journal = Journal(out, self._identity(), artifacts)
        self._shipping = shipping
        self._departures: ShardSender | None = None
        # Units encoded and written but not yet journaled: unit -> CRC-32 per artifact.
        self._unrecorded: list[tuple[int, Record]] = []

    def execute(self, check: Callable[[Path], Check] | None) -> list[Artifact]:
        """Build all artifacts; see `engine.build`."""
        if check is not None:
            self._trial = max(artifact.layout.trial_bytes for artifact in self._artifacts)
        try:
            with naming_failures(self._out, self._missing):
                self._prepare()
                with closing(self._workers.start(self._assignment())) as executor:
                    sources = self._write(executor)
                    verified = self._verify_all(executor)
                results = [
                    self._finish(artifact, digests(), sources, check)
                    for artifact, digests in zip(self._artifacts, verified, strict=True)
                ]
                self._remove_left()
                self._journal.remove()
        except (WeightsError, SourceChangedError, ReadBackError):
            self._discard()  # a later run cannot go on from here
            raise
        except ClusterError:
            if not self._journal.finished and not self._journal.left:
                self._discard()  # it was refused before it began
            raise
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped with {len(self._journal.done)} of {len(self._units)} slabs "
                "encoded; run the same command to go on from there."
            ) from None
        return results

    def _identity(self) -> dict[str, Any]:
        """What all artifacts depend on."""
        kernel, description = self._work.kernel, self._work.checkpoint.description
        return {
            "quantkit": __version__,
            "source": identify_source(self._work.checkpoint, self._stamps),
            "kernel": [kernel.name, kernel.version],
            "unit": UNIT_ELEMENTS,
            **({"converter": description.version} if description else {}),
            **({"part": "projector"} if self._work.is_projector else {}),
        }

    def _identify(self, layout: Layout) -> dict[str, Any]:
        """What else one artifact's bytes depend on."""
        imatrix = self._work.imatrix.sha256 if self._work.imatrix else None
        return layout.depends_on(imatrix, self._work.kernel.search)

    def _assignment(self) -> EncodeRequest:
        finished = self._journal.finished
        done = {self._units[index] for index in self._journal.done}
        partly = {
            index: tuple(number for number, pieces in enumerate(crcs) if pieces is None)
            for index, crcs in finished.items()
            if None in crcs
        }
        return EncodeRequest(
            self._work,
            self._artifacts,
            self._units,
            Reading(self._stamps, done, dict(self._journal.hashed), self._work.known, self._ahead),
            self._threads,
            self._slots,
            keep=self._keep,
            passed=self._passed,
            compiling=lambda name: self._report(Progress("compile", 0, 1, name)),
            partly=partly,
        )

    def _keep(self, index: int, crcs: Crcs) -> None:
        """What a unit gave now, and what it gave to other artifacts in earlier runs."""
        earlier = self._journal.finished.get(index, ())
        known = dict(enumerate(earlier))
        record = [now if known.get(n) is None else known[n] for n, now in enumerate(crcs)]
        self._unrecorded.append((index, record))

    def _passed(self, n_bytes: int) -> None:
        self._done += n_bytes
        self._report(Progress("encode", self._done, self._total))

    def _missing(self) -> int:
        kept = self._work.kept
        if self._departures is not None:
            artifacts = max(0, self._departures.peak() - self._departures.on_disk)
        else:
            artifacts = sum(artifact.missing for artifact in self._artifacts)
        return (
            artifacts
            + self._trial
            + (kept.missing if kept is not None and kept.shares_disk_with(self._out) else 0)
            + SIDE_FILES
        )

    def _prepare(self) -> None:
        """Take over an interrupted build of the same, or clear away one of another."""
        for artifact in self._artifacts:
            refuse_links(artifact.final)
            refuse_taken(artifact, self._work.checkpoint)
            remove(trial_of(artifact.partial))  # of a run that was killed
        journal = self._journal
        journal.resume()
        self._forget_absent()
        self._make_room_for_left()
        self._tell_what_is_lost()
        served = {a.partial for n, a in enumerate(self._artifacts) if journal.has(n)}
        served |= {self._out / name for name in journal.left}
        for path in {a.partial for a in self._artifacts}.union(partial_paths(self._out)) - served:
            remove(path)
        if self._shipping is not None:
            self._departures = ShardSender(
                self._shipping, self._artifacts, self._units, self._journal
            )
            self._departures.check(shutil.disk_usage(self._out).free - SIDE_FILES)
        check_space(self._out, self._missing())
        if self._work.kept is not None:
            check_space(self._work.kept.folder, self._work.kept.missing)
        self._journal.start()

    def _forget_absent(self) -> None:
        """Let go of what was in files that are not there, or cannot have been written like that."""
        nothing_there = True
        for number, artifact in enumerate(self._artifacts):
            absent = artifact.absent()
            if len(absent) == len(artifact.paths):
                self._journal.forget(number)
                continue
            nothing_there = False
            gone = []
            for index, crcs in self._journal.finished.items():
                if (pieces := crcs[number]) is None:
                    continue
                if index < len(self._units):
                    unit = self._units[index]
                    places = artifact.layout.places(unit.target, unit.row, unit.rows)
                    if len(places) == len(pieces) and not any(p.file in absent for p in places):
                        continue
                gone.append(index)
            self._journal.forget(number, gone)
        if nothing_there:
            self._journal.forget_files()

    def _make_room_for_left(self) -> None:
        """Give up what earlier runs left for other quants where the disk has no room beside it."""
        if self._journal.left and shutil.disk_usage(self._out).free < self._missing():
            self._journal.lost |= dict(self._journal.left_units())
            self._journal.drop_left()

    def _tell_what_is_lost(self) -> None:
        total = len(self._units)
        for name, count in self._journal.left_units():
            self._say(
                f"{name} of an interrupted build ({count} of {total} slabs) is for a quant that is "
                "not asked for now, and is deleted when this build is finished; to keep it, press "
                "Ctrl-C and add that quant."
            )
        for name, count in self._journal.lost.items():
            if count:
                self._say(
                    f"{name} of an interrupted build ({count} slabs) was made from another source "
                    "or in another way, is of no use now, and is deleted."
                )

    def _remove_left(self) -> None:
        for name in self._journal.left:
            remove(self._out / name)

    def _write(self, executor: Executor) -> dict[Path, str]:
        """Fill the partial files; the sha256 of each source file."""
        try:
            for artifact in self._artifacts:
                artifact.open()
            executor.prepare()
            with sessions(self._artifacts):
                sources = self._encode_all(executor)
                for artifact in self._artifacts:
                    artifact.complete()
            for artifact in self._artifacts:
                artifact.write_headers()
        finally:
            for artifact in self._artifacts:
                artifact.close()
        return sources

    def _discard(self) -> None:
        for artifact in self._artifacts:
            artifact.discard()
        self._remove_left()
        self._journal.remove()

    def _encode_all(self, executor: Executor) -> dict[Path, str]:
        """Encode every unit that no earlier run finished; the sha256 of each source file."""
        committed = time.monotonic()
        with (
            ThreadPoolExecutor(1, "commit") as commit_pool,
            closing(self._departures) if self._departures else nullcontext(),
        ):
            committer = commit_pool.submit(self._commit, executor)
            done = self._journal.done
            try:
                for index in range(len(self._units)):
                    if self._departures and index not in done:
                        self._departures.make_room(index)
                    executor.submit(index)
                    if self._departures and (due := self._departures.due(index)):
                        executor.drain()
                        committer.result()
                        self._commit(executor)
                        self._departures.start(due)
                    if time.monotonic() - committed > _COMMIT_SECONDS and committer.done():
                        committer.result()
                        committer = commit_pool.submit(self._commit, executor)
                        committed = time.monotonic()
                executor.finish()
                committer.result()
                self._commit(executor)
                if self._departures:
                    self._departures.finish()
            except KeyboardInterrupt:
                executor.cancel()
                commit_pool.shutdown()
                self._commit(executor)
                raise
            except BaseException:
                executor.cancel()
                raise
            return dict(executor.sha256)

    def _commit(self, executor: Executor) -> None:
        """Sync what was written, then journal it."""
        hashed = {file.name: digest for file, digest in dict(executor.sha256).items()}
        batch = [self._unrecorded.pop() for _ in range(len(self._unrecorded))]
        if batch:
            for artifact in self._artifacts:
                artifact.sync()
        self._journal.record(batch, hashed)

    def _finish(
        self,
        artifact: PartialArtifact,
        digests: Sequence[str],
        sources: Mapping[Path, str],
        check: Callable[[Path], Check] | None,
    ) -> Artifact:
        """Check, record and rename one verified artifact."""
        layout = artifact.layout
        files = [
            {
                "name": f"{layout.folder}/{file.name}" if layout.folder else file.name,
                "bytes": file.n_bytes,
                "sha256": digest,
                **artifact.where(number),
                **({"modified_ns": stamp(artifact.paths[number])[1]} if artifact.is_here else {}),
            }
            for number, (file, digest) in enumerate(zip(layout.files, digests, strict=True))
        ]
        entry = manifest.describe_artifact(self._work, layout, files, sources)
        verdict = None
        if self._shipping is not None and leaves_by_shards(layout):
            entry["published"] = self._shipping.to
            manifest.add_artifact(self._out, layout.name, entry)
            return Artifact(layout, artifact.final, entry, None, fresh=True)
        if check is not None and artifact.is_here:
            self._report(Progress("check", 0, 1, layout.name))
            verdict = check(artifact.runnable)
            entry["smoke"] = verdict.record
            if not verdict.ok:
                return Artifact(layout, artifact.reject(), entry, verdict, fresh=True)
        # The entry comes first: a crash in between leaves a partial file that the next run
        # verifies and renames, never a finished file that no manifest knows.
        manifest.add_artifact(self._out, layout.name, entry)
        artifact.publish()
        return Artifact(layout, self._out / layout.opened, entry, verdict, fresh=True)

    def _verify_all(self, executor: Executor) -> list[Callable[[], list[str]]]:
        """Verify every artifact; for each, what gives the sha256 of its files, or what is wrong."""
        sent = [self._departures and self._departures.digests(a) for a in self._artifacts]
        written: list[list[list[Written]]] = [
            written_to(artifact, number, self._units, self._journal.finished) if not known else []
            for number, (artifact, known) in enumerate(zip(self._artifacts, sent, strict=True))
        ]
        total = sum(artifact.layout.n_bytes for artifact in self._artifacts)
        files = verify(
            executor, written, lambda done: self._report(Progress("verify", done, total))
        )

        def digests(number: int) -> list[str]:
            return sent[number] or [file.result() for file in files[number]]

        return [partial(digests, number) for number in range(len(files))]
