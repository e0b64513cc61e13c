import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from quantkit.core.errors import CompareError, GGUFError, QuantkitError, TextError
from quantkit.planning.quants import folder_quants
from quantkit.verification.compare import Comparison, compare, default_text, mean_divergence
from quantkit.verification.divergence import Measures
from quantkit.verification.layers import weight_errors
from quantkit.verification.llama import Run, run_worker
from quantkit.verification.quality import Limits, find_limits, judge
from quantkit.verification.subjects import (
    build_reference,
    find_subjects,
    open_subject,
    pick_reference,
)
from tests.building.builds import build
from tests.checkpoints.text import heldout_text
from tests.verification.faults import FAULTS, with_fault, zero_expert
from tests.verification.hanging import HANG, Hanging

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
LADDER = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ladder of tiny-mixtral, with the exact reference."""
    out = tmp_path_factory.mktemp("compare") / "ladder"
    build(CHECKPOINTS / "tiny-mixtral", out, "f32", *LADDER)
    return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


@pytest.fixture(scope="module")
def ladder(folder: Path, cache: Path) -> Comparison:
    subjects = find_subjects([folder], folder)
    reference = pick_reference(subjects, None)
    assert reference is not None
    return compare(subjects, reference, cache=cache, threads=1)


def swap_experts(folder: Path) -> None:
    """Exchange two experts' gates, all parts of them, by their names in the shards' headers."""
    [file] = folder.glob("*.safetensors")
    name = b"layers.2.block_sparse_moe.experts.%c.w1."
    one, other, neither = (name % letter for letter in b"36x")
    data = file.read_bytes().replace(one, neither).replace(other, one).replace(neither, other)
    file.write_bytes(data)


def of(folder: Path, quant: str) -> Path:
    [file] = folder.glob(f"*-{quant.upper()}.gguf")
    return file


def test_the_default_text_is_what_the_tiny_checkpoints_never_saw() -> None:
    assert default_text() == heldout_text()


def test_healthy_builds_of_the_whole_ladder_pass(ladder: Comparison) -> None:
    assert [r.subject.quant for r in ladder.results] == ["f32", *LADDER]
    assert {r.subject.quant: r.verdict.reason for r in ladder.failed} == {}
    assert ladder.results[0].is_reference
    assert ladder.windows == 28
    klds = [r.measures.kld for r in ladder.results if r.measures]
    assert klds == sorted(klds)
    assert klds[1] < 0.0001 < 0.02 < klds[-1] < 0.1
    for result in ladder.results:
        assert result.measures is not None
        assert result.measures.n_tokens == 28 * 255
        assert 25 < result.measures.ppl < 29
        assert result.measures.kld_max >= result.measures.kld_percentiles[-1]


@pytest.mark.parametrize(("context", "windows"), [(512, 1), (512, 3), (512, 8), (128, 2), (128, 9)])
def test_healthy_builds_do_not_fail_over_a_short_text(
    folder: Path, cache: Path, context: int, windows: int
) -> None:
    """In a mixture a few positions, routed otherwise, make up most of a short text's divergence."""
    wanted = [open_subject(of(folder, quant)) for quant in ("q8_0", "q6_k", "q4_k_m")]
    reference = open_subject(of(folder, "f32"))
    found = compare(wanted, reference, context=context, windows=windows, cache=cache, threads=1)
    for result in found.results[1:]:
        verdict, measures = result.verdict, result.measures
        assert verdict.ok, verdict.reason
        assert measures is not None
        assert isinstance(verdict.limits, Limits)
        decides = 3 * measures.kld_pm <= verdict.limits.kld and measures.n_tokens >= 250
        assert verdict.judged == decides
        assert verdict.reason.startswith("healthy" if decides else "Too few windows to judge")
    if (context, windows) in ((512, 1), (128, 2)):
        assert not all(result.verdict.judged for result in found.results[1:])


def measured(kld: float, pm: float, top: float, n: int) -> Measures:
    zeros: dict[str, Any] = dict.fromkeys((field.name for field in fields(Measures)), 0.0)
    given = {"n_tokens": n, "kld": kld, "kld_pm": pm, "same_top": top, "kld_percentiles": (0.0,)}
    return Measures(**{**zeros, **given})


@pytest.mark.parametrize(
    ("measures", "ok", "judged", "words"),
    [
        (measured(0.0010, 0.0001, 0.99, 7000), True, True, "healthy"),
        (measured(0.0013, 0.0001, 0.99, 7000), True, True, "healthy"),  # 1.1 and 3 errors
        (measured(0.0015, 0.0001, 0.99, 7000), False, True, "mean KLD 0.0015 is above 0.0011"),
        (measured(0.0015, 0.0004, 0.99, 700), True, False, "Too few windows"),
        (measured(0.0003, 0.0004, 0.99, 700), True, False, "Too few windows"),
        (measured(0.5, 0.1, 0.5, 700), False, True, "mean KLD 0.5 is above"),
        (measured(0.5, 0.1, 0.5, 60), True, False, "Too few windows"),
        (measured(0.0005, 0.0001, 0.977, 7000), True, True, "healthy"),
        (measured(0.0005, 0.0001, 0.970, 7000), False, True, "top token agrees in 97.0%"),
        (measured(0.0005, 0.0001, 0.970, 700), True, True, "healthy"),
        (measured(float("nan"), 0.0, 0.99, 7000), False, True, "mean KLD nan is above"),
    ],
)
def test_limits_widen_by_three_standard_errors(
    folder: Path, measures: Measures, ok: bool, judged: bool, words: str
) -> None:
    """Of q8_0 below 100 million parameters: 0.0011 and 98.1 %."""
    verdict = judge(open_subject(of(folder, "q8_0")), open_subject(of(folder, "f32")), measures)
    assert (verdict.ok, verdict.judged) == (ok, judged), verdict
    assert words in verdict.reason


def test_speed_and_memory_come_from_the_same_run(ladder: Comparison) -> None:
    for result in ladder.results:
        speed = result.speed
        assert speed is not None
        assert speed.prompt_tokens_per_second > 1
        assert speed.generation_tokens_per_second is not None
        assert speed.generation_tokens_per_second > 1
        assert speed.load_seconds > 0
        assert speed.resident_bytes is not None
        assert 1e7 < speed.resident_bytes < GIB + result.subject.n_bytes


@pytest.mark.parametrize("quant", ["q8_0", "q2_k"])
def test_five_faults_are_caught(folder: Path, cache: Path, tmp_path: Path, quant: str) -> None:
    reference = open_subject(of(folder, "f32"))
    names = {f"fault-{i}.gguf": name for i, name in enumerate(FAULTS)}
    for file, name in names.items():
        with_fault(of(folder, quant), tmp_path / file, FAULTS[name])
    subjects = [open_subject(tmp_path / file) for file in names]
    found = compare(subjects, reference, windows=2, cache=cache, threads=1)
    reasons = {names[r.subject.name]: r.verdict.reason for r in found.failed}
    assert set(reasons) == set(FAULTS)
    assert "expert" in reasons["two experts swapped in one layer"]
    assert "attn" in reasons["q and k rows not permuted"]
    assert "blk.3" in reasons["one expert zeroed"]
    assert "blk.1.ffn_norm.weight are 10% off" in reasons["a norm scaled by 1.1"]
    assert "rope.freq_base is 10000.0" in reasons["the wrong rope base"]
    if quant == "q8_0":  # the divergence alone tells, too
        assert all("mean KLD" in reason for reason in reasons.values())


def test_an_expert_that_the_text_hardly_uses_is_caught_by_its_weights(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rare.gguf"
    with_fault(of(folder, "q4_k_m"), file, lambda f: zero_expert(f, layer=1, expert=3))
    reference = open_subject(of(folder, "f32"))
    found = compare([open_subject(file)], reference, windows=2, cache=cache, threads=1)
    assert "expert 3, are 100% off" in found.failed[0].verdict.reason
    assert "KLD" not in found.failed[0].verdict.reason


def test_the_reference_is_recorded_once(folder: Path, tmp_path: Path) -> None:
    reference, artifact = open_subject(of(folder, "f16")), open_subject(of(folder, "q8_0"))
    first = compare([artifact], reference, windows=1, cache=tmp_path, threads=1)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {file.suffix for file in times} == {".kld", ".json"}
    again = compare([artifact], reference, windows=1, cache=tmp_path, threads=1)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times
    assert first.results[1].measures == again.results[1].measures
    os.utime(reference.gguf)
    compare([artifact], reference, windows=1, cache=tmp_path, threads=1)
    assert len(list(tmp_path.iterdir())) == 4


# A worker that does real work, but on some files dies or hangs.
WORKER = f"""
{HANG}
import io, json, os, pathlib, sys
request = sys.stdin.read()
file = pathlib.Path(json.loads(request)["file"]).name
print(json.dumps({{"stage": "evaluating window 1 of 1"}}), flush=True)
if "abort" in file: os.abort()
if "hang" in file: hang(sys.argv[1])
sys.stdin = io.StringIO(request)
from quantkit.verification.worker import main
main()
"""


def test_a_crash_a_hang_and_a_refusal_leave_the_others_alone(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    sound = of(folder, "q8_0")
    for name in ("abort", "hang", "sound"):
        (tmp_path / f"{name}.gguf").symlink_to(sound)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(sound.read_bytes().replace(b"blk.0.attn_k", b"blk.0.attn_z"))
    order = ("abort", "hang", "broken", "sound")
    hanging = Hanging(tmp_path)
    real = run_worker

    def run(request: dict[str, Any], **options: Any) -> Run:
        if "hang" not in Path(request["file"]).name:
            return real(request, **options)
        with hanging.then_time_is_up(options["timeout"]):
            return real(request, **options)

    with patch("quantkit.verification.compare.run_worker", run):
        found = compare(
            [open_subject(tmp_path / f"{name}.gguf") for name in order],
            open_subject(of(folder, "f32")),
            windows=1,
            timeout=600,  # time: more than sound ones take; for the other see Hanging
            cache=cache,
            threads=1,
            command=[sys.executable, "-P", "-c", WORKER, str(hanging.pipe)],
        )
    hanging.wait_for_the_end()
    reasons = {r.subject.name: r.verdict.reason for r in found.results[1:]}
    assert "SIGABRT while evaluating" in reasons["abort.gguf"]
    assert "timed out after 600 s" in reasons["hang.gguf"]
    assert "attn_k.weight' not found" in reasons["broken.gguf"]
    unmeasured = [r.subject.name for r in found.results if r.measures is None]
    assert unmeasured == ["abort.gguf", "hang.gguf", "broken.gguf"]
    assert not any(r.verdict.ok for r in found.results if r.measures is None)


def test_a_reference_that_crashes_ends_it_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    subject = open_subject(of(folder, "q8_0"))
    command = [sys.executable, "-c", "import os; os.abort()"]
    with pytest.raises(CompareError, match=r"reference .* cannot be measured: .*SIGABRT"):
        compare([subject], subject, cache=tmp_path, command=command)
    assert not list(tmp_path.iterdir())


def test_another_vocabulary_is_no_reference(folder: Path, cache: Path, tmp_path: Path) -> None:
    [other] = build(CHECKPOINTS / "tiny-mistral", tmp_path, "q8_0")
    data = other.path.read_bytes()
    assert data.count("▁the".encode()) > 0
    other.path.write_bytes(data.replace("▁the".encode(), "▁xqz".encode()))
    found = compare(
        [open_subject(other.path)],
        open_subject(of(folder, "f32")),
        windows=1,
        cache=cache,
        threads=1,
    )
    assert "other tokens than the reference" in found.failed[0].verdict.reason


def test_a_quantized_reference_is_named_as_such(folder: Path, cache: Path) -> None:
    subjects = find_subjects([of(folder, "q8_0"), of(folder, "q4_k_m")], folder)
    reference = pick_reference(subjects, "q8_0")
    assert reference is not None
    found = compare(subjects, reference, windows=2, cache=cache, threads=1)
    assert not found.failed
    assert found.results[0].is_reference


def test_mean_divergence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = [of(folder, quant) for quant in ("q6_k", "q2_k")]
    found = mean_divergence(files, of(folder, "f32"), windows=2)
    assert list(found) == files
    (low, low_pm), (high, high_pm) = found.values()
    assert 0 < low < high < 0.2
    assert 0 < low_pm < high_pm < high


def test_the_reference_is_built_from_the_checkpoint(tmp_path: Path) -> None:
    built = build_reference(CHECKPOINTS / "tiny-mistral", tmp_path, None)
    assert built.quant == "bf16"
    assert build_reference(CHECKPOINTS / "tiny-mistral", tmp_path, None).gguf == built.gguf


def test_choosing_a_reference(folder: Path) -> None:
    subjects = find_subjects([folder], folder)
    names = {s.quant: s for s in subjects}
    assert pick_reference(subjects, None) == names["f32"]
    assert pick_reference([names["q8_0"], names["f16"]], None) == names["f16"]
    assert pick_reference([names["q8_0"]], None) is None
    assert pick_reference([names["q8_0"]], str(names["f16"].gguf)) == names["f16"]
    with pytest.raises(QuantkitError, match="group"):
        pick_reference(subjects, "gguf-all")
    with pytest.raises(GGUFError, match="does not exist"):
        pick_reference(subjects, "/nowhere/x.gguf")


@pytest.mark.parametrize(
    ("data", "reason"), [(None, "does not exist"), (b"\xff\xfe", "not UTF-8"), (b"short", "fewer")]
)
def test_texts_of_no_use(
    folder: Path, tmp_path: Path, cache: Path, data: bytes | None, reason: str
) -> None:
    text = tmp_path / "text"
    if data is not None:
        text.write_bytes(data)
    subject = open_subject(of(folder, "q8_0"))
    with pytest.raises((TextError, CompareError), match=reason):
        compare([subject], subject, text=text, cache=cache, threads=1)


def test_weight_errors_name_every_expert(folder: Path) -> None:
    errors = weight_errors(of(folder, "q8_0"), of(folder, "f32"))
    experts = [e for e in errors if e.tensor == "blk.2.ffn_down_exps.weight"]
    assert [e.expert for e in experts] == list(range(8))
    assert all(0.003 < e.error < 0.007 for e in experts)
    norms = [e for e in errors if e.role.endswith("norm")]
    assert len(norms) == 9
    assert all(e.error == 0 and e.encoding == "F32" for e in norms)
    some = weight_errors(of(folder, "q8_0"), of(folder, "f32"), rows=32)
    gaps = np.array([a.error - b.error for a, b in zip(errors, some, strict=True)])
    assert np.abs(gaps).max() < 0.001


def test_weights_of_another_model_cannot_be_compared(folder: Path, tmp_path: Path) -> None:
    [other] = build(CHECKPOINTS / "tiny-mistral", tmp_path, "f16")
    with pytest.raises(CompareError, match="same tensors"):
        weight_errors(other.path, of(folder, "f32"))


def test_importing_it_brings_nothing_heavy() -> None:
    code = (
        "import sys, quantkit.verification.compare, quantkit.cli.compare\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'llama_cpp'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_artifacts_for_transformers_are_compared_by_way_of_an_export(
    folder: Path, tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "out"
    build(CHECKPOINTS / "tiny-mixtral", out, "bnb-nf4", "q8_0")
    told: list[str] = []
    subjects = find_subjects([out], tmp_path / "exports", told.append)
    assert told == ["Tiny-Mixtral-8x2.1M-bnb-nf4"]
    found = compare(subjects, open_subject(of(folder, "f32")), windows=2, cache=cache, threads=1)
    nf4 = next(r for r in found.results if r.subject.quant == "bnb-nf4")
    assert nf4.subject.how == "dequantized to f16 by quantkit export"
    assert nf4.subject.n_bytes == sum(f.stat().st_size for f in (out / told[0]).iterdir())
    assert nf4.measures is not None
    assert 0.001 < nf4.measures.kld < 0.03
    assert nf4.verdict.limits is not None
    assert "weights" not in nf4.verdict.reason
    # The folder itself can be named, too. What is wrong in it shows in its weights.
    swap_experts(out / told[0])
    [swapped] = find_subjects([out / told[0]], tmp_path / "again")
    assert swapped.name == told[0]
    verdict = judge(swapped, open_subject(of(folder, "f32")), None)
    assert "blk.2.ffn_gate_exps.weight, expert" in verdict.reason
    assert verdict.reason.endswith("more than bnb-nf4 explains (and 1 more).")


def test_limits_for_every_quant_of_folders() -> None:
    """Where nothing is published for large models, those of a GGUF quant that loses more."""
    small, large = find_limits("gptq-int4", 10**6), find_limits("gptq-int4", 10**9)
    gguf = find_limits("q4_k_m", 10**9)
    assert small is not None
    assert large is not None
    assert gguf is not None
    assert (large.kld, large.same_top) == (gguf.kld, gguf.same_top)
    assert large.basis == f"as for q4_k_m: {gguf.basis}"
    assert small.kld < large.kld
    for quant in folder_quants():
        assert find_limits(quant, 10**6)
        assert find_limits(quant, 10**9)
