"""What an interrupted build did serves any later build of the same source, whichever its quants."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.building.artifact import Progress
from quantkit.building.journal import Journal
from quantkit.building.work import Work, prepare
from quantkit.core.errors import Interrupted
from quantkit.encodings.encoding import Encoding
from quantkit.encodings.slab import Slab
from quantkit.formats.layout import FileOptions
from quantkit.planning.quants import find_quants
from tests.building.builds import artifacts_in, build_work, check_manifest, names_in, small_slabs

SLAB = 2**14
AFTER = 15


def counting(work: Work, counts: Counter[str]) -> Work:
    """The same work, counting the slabs that are encoded, by block format."""

    def encode(
        slab: Slab, encoding: Encoding, importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        if encoding.is_block:
            counts[encoding.name] += 1
        return work.kernel.encode(slab, encoding, importance)

    return replace(work, kernel=replace(work.kernel, encode=encode))


def stop(work: Work, out: Path, after: int = AFTER) -> tuple[Counter[str], list[str]]:
    """Stop a build, as by Ctrl-C, when it has read so many slabs.

    How many it encoded, all of which are finished, and what it said before.
    """
    counts: Counter[str] = Counter()
    said: list[str] = []

    def report(_: Progress) -> None:
        nonlocal after
        after -= 1
        if not after:
            raise KeyboardInterrupt

    with small_slabs(SLAB), pytest.raises(Interrupted):
        build_work(counting(work, counts), out, report=report, say=said.append, jobs=1)
    assert not artifacts_in(out)
    assert sum(counts.values()) > AFTER // 2
    return counts, said


def finish(work: Work, out: Path) -> tuple[Counter[str], list[str]]:
    """Finish a build: how many slabs it encoded, by block format, and what it said before."""
    counts: Counter[str] = Counter()
    said: list[str] = []
    with small_slabs(SLAB):
        build_work(counting(work, counts), out, say=said.append, jobs=1)
    return counts, said


def work_of(checkpoint: Path, *quants: str, shard_size: int | None = None) -> Work:
    return prepare(checkpoint, find_quants(quants), FileOptions(shard_size=shard_size))


def check_same(out: Path, reference: Path) -> None:
    """The same bytes, a manifest of all of them, and nothing unfinished."""
    artifacts = artifacts_in(reference)
    assert artifacts_in(out) == artifacts
    check_manifest(out, {Path(name).parts[0].removesuffix(".gguf") for name in artifacts})
    assert names_in(out) == names_in(reference)


@pytest.mark.parametrize("shard_size", [None, 600_000], ids=["single", "shards"])
def test_a_quant_is_added(mistral: Path, tmp_path: Path, shard_size: int | None) -> None:
    """Rows that are done for q8_0 are only read for q5_0.

    Of this model no matrix has the same format in both, so that encodes can be told apart.
    """
    out, plain = tmp_path / "out", tmp_path / "at once"
    before, _ = stop(work_of(mistral, "q8_0", shard_size=shard_size), out)
    both = work_of(mistral, "q8_0", "q5_0", shard_size=shard_size)
    whole, _ = finish(both, plain)
    after, said = finish(both, out)
    assert before + after == whole
    assert said == []
    check_same(out, plain)


def test_quants_come_and_go(mistral: Path, tmp_path: Path) -> None:
    """Stopped with two, with another two, and finished with all three: nothing is done twice."""
    out, plain = tmp_path / "out", tmp_path / "at once"
    first, _ = stop(work_of(mistral, "q8_0", "q4_0"), out)
    second, said = stop(work_of(mistral, "q8_0", "q5_0"), out, AFTER + 10)
    assert second["Q4_0"] == 0 < second["Q8_0"] < second["Q5_0"]
    [sentence] = said
    assert "Q4_0.gguf.partial of an interrupted build" in sentence
    assert "deleted when this build is finished" in sentence
    everything = work_of(mistral, "q8_0", "q5_0", "q4_0")
    whole, _ = finish(everything, plain)
    last, said = finish(everything, out)
    assert first + second + last == whole
    assert said == []
    check_same(out, plain)


def test_a_quant_is_left_out(mixtral: Path, tmp_path: Path) -> None:
    """That is said before, and what it left is gone in the end."""
    out, plain = tmp_path / "out", tmp_path / "at once"
    before, _ = stop(work_of(mixtral, "q8_0", "q4_0"), out)
    alone = work_of(mixtral, "q4_0")
    whole, _ = finish(alone, plain)
    after, [sentence] = finish(alone, out)
    assert before["Q4_0"] + after["Q4_0"] == whole["Q4_0"]
    assert "Q8_0.gguf.partial of an interrupted build" in sentence
    check_same(out, plain)


def test_folders_beside_files(mixtral: Path, tmp_path: Path) -> None:
    """What a folder's format depends on is its own: adding one leaves the others alone."""
    out, plain = tmp_path / "out", tmp_path / "at once"
    before, _ = stop(work_of(mixtral, "q8_0"), out)
    both = work_of(mixtral, "q8_0", "bnb-nf4")
    whole, _ = finish(both, plain)
    after, said = finish(both, out)
    assert before + after == whole
    assert said == []
    assert names_in(out) == names_in(plain)
    for name in names_in(plain) - {"quantkit.json"}:
        assert (out / name).read_bytes() == (plain / name).read_bytes(), name


def test_only_the_quant_whose_file_is_lost_begins_anew(mixtral: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "at once"
    both = work_of(mixtral, "q8_0", "q4_0")
    before, _ = stop(both, out)
    next(out.glob("*Q8_0.gguf.partial")).unlink()
    whole, _ = finish(both, plain)
    after, _ = finish(both, out)
    assert after["Q8_0"] == whole["Q8_0"]
    assert before["Q4_0"] + after["Q4_0"] == whole["Q4_0"]
    check_same(out, plain)


def test_work_for_another_source_is_not_lost_silently(
    mixtral: Path, mistral: Path, tmp_path: Path
) -> None:
    out, plain = tmp_path / "out", tmp_path / "at once"
    stop(prepare(mixtral, find_quants(["q8_0"]), FileOptions("One")), out)
    other = prepare(mistral, find_quants(["q8_0"]), FileOptions("Other"))
    whole, _ = finish(other, plain)
    after, [sentence] = finish(other, out)
    assert after == whole
    assert sentence.startswith("One-Q8_0.gguf.partial of an interrupted build (")
    assert "another source" in sentence
    check_same(out, plain)


def test_entries_of_another_form_spoil_only_themselves(mixtral: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "at once"
    work = work_of(mixtral, "q8_0")
    before, _ = stop(work, out)
    journal = out / ".quantkit-journal"
    bad = [
        {"0": None}, {"1": 7}, {"2": [[1], [2]]}, {"3": [["x"]]}, {"4": [[True]]}, {"x": [[1]]},
        {"99999": [[1]]}, {"5": [[1, 2, 3]]}, {"hashed": 3}, {"sent": []},
    ]  # fmt: skip
    with journal.open("a") as file:
        file.writelines(f"\n{json.dumps(line)}" for line in bad)
    whole, _ = finish(work, plain)
    after, _ = finish(work, out)
    assert before + after <= whole + Counter({"Q8_0": 1})  # unit 5 was spoilt
    check_same(out, plain)


def test_a_journal_knows_its_artifacts_by_what_they_depend_on(tmp_path: Path) -> None:
    earlier = Journal(tmp_path, {"source": "s"}, {"a.partial": "1", "b.partial": "1"})
    for name in ("a.partial", "b.partial"):
        (tmp_path / name).touch()
    earlier.start()
    earlier.record([(0, [[1], [2]]), (1, [[3], [4]])])
    later = Journal(
        tmp_path, {"source": "s"}, {"c.partial": "1", "b.partial": "1", "a.partial": "2"}
    )
    later.resume()
    assert later.finished == {0: [None, [2], None], 1: [None, [4], None]}
    assert (later.done, later.left, later.lost) == (set(), {}, {"a.partial": 2})
    later.start()
    later.record([(0, [[5], [2], [6]])])
    last = Journal(tmp_path, {"source": "s"}, {"a.partial": "2", "c.partial": "1"})
    last.resume()
    assert last.finished == {0: [[6], [5]]}
    assert last.done == {0}
    assert dict(last.left_units()) == {"b.partial": 2}
