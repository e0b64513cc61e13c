"""Predicted file sizes against files that were really built, to the byte."""

from pathlib import Path

import numpy as np
import pytest

from quantkit.building.work import prepare
from quantkit.checkpoint.imatrix import load_imatrix
from quantkit.core.errors import CheckpointError, GGUFError
from quantkit.fitting.subject import PlanOptions, SizedModel, bundled_models, open_subject
from quantkit.formats.layout import FileOptions
from quantkit.planning.names import may_be_quantized
from quantkit.planning.quants import all_quants, find_quants
from tests.building.builds import build_work
from tests.imatrix_writer import write_gguf_imatrix
from tests.parity.cases import CASES, TRAINED
from tests.planning.large_models import LARGE_MODELS

SOME = ("bf16", "q8_0", "q4_k_m", "q2_k")


def on_disk(path: Path) -> int:
    """Bytes of an artifact: one file, or a folder of shards."""
    files = path.parent.glob("*-of-*.gguf") if "-of-" in path.name else [path]
    return sum(file.stat().st_size for file in files)


def check(
    checkpoint: Path,
    out: Path,
    quants: tuple[str, ...],
    shard_size: int | None = None,
    imatrix: Path | None = None,
) -> SizedModel:
    chosen = find_quants(quants)
    matrix = load_imatrix(imatrix) if imatrix else None
    wishes = PlanOptions(chosen, shard_size, matrix)
    subject = open_subject(str(checkpoint), wishes)
    work = prepare(checkpoint, chosen, FileOptions(shard_size=shard_size), imatrix=matrix)
    built = {a.layout.plan.quant.name: a for a in build_work(work, out)}
    assert {variant.name for variant in subject.variants} == set(built)
    for variant in subject.variants:
        assert variant.file_is_exact
        assert variant.file_bytes == on_disk(built[variant.name].path), variant.name
        assert variant.n_files == len(built[variant.name].layout.files)
    return subject


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-mistral"])
def test_every_quant_of_the_trained_checkpoints(name: str, tmp_path: Path) -> None:
    subject = open_subject(str(TRAINED / name))
    plain = tuple(v.name for v in subject.variants if not v.needs_imatrix)
    assert len(plain) > 20
    check(TRAINED / name, tmp_path / "plain", plain)
    assert subject.model is not None
    entries = {}
    for target in subject.model.targets:
        if may_be_quantized(target, subject.model.arch):
            matrices = target.shape[0] if len(target.shape) == 3 else 1
            entries[target.name] = np.ones((matrices, target.columns)), np.ones(matrices)
    imatrix = write_gguf_imatrix(tmp_path / "imatrix.gguf", entries)
    rest = tuple(quant for quant in all_quants() if quant not in plain)
    check(TRAINED / name, tmp_path / "weighted", (*rest, "q4_0"), imatrix=imatrix)


# Its vocabulary comes with llama.cpp's source.
BYTE_LEVEL = "llama-byte-level"
ODD = [name for name in CASES if not name.startswith("tiny") and name != BYTE_LEVEL]


@pytest.mark.parametrize("name", [*ODD, pytest.param(BYTE_LEVEL, marks=pytest.mark.native)])
def test_odd_checkpoints(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    CASES[name].write(source)
    check(source, tmp_path / "out", SOME)


def test_splits(tmp_path: Path) -> None:
    subject = check(TRAINED / "tiny-mixtral", tmp_path, ("q8_0", "q4_k_m"), shard_size=2 * 10**6)
    assert min(variant.n_files for variant in subject.variants) > 2


def test_an_imatrix_quant_is_not_called_exact_without_one() -> None:
    subject = open_subject(str(TRAINED / "tiny-mistral"))
    assert {v.name for v in subject.variants if not v.file_is_exact} == {
        v.name for v in subject.variants if v.needs_imatrix
    }


def test_a_built_file_is_its_own_prediction(tmp_path: Path) -> None:
    checkpoint = TRAINED / "tiny-mixtral"
    work = prepare(checkpoint, find_quants(["q4_k_m"]), FileOptions(shard_size=2 * 10**6))
    (artifact,) = build_work(work, tmp_path)
    subject = open_subject(str(artifact.path))
    (variant,) = subject.variants
    (planned,) = open_subject(str(checkpoint), PlanOptions(find_quants(["q4_k_m"]))).variants
    assert variant.name == "q4_k_m"
    assert variant.file_bytes == on_disk(artifact.path)
    assert (variant.tensors, variant.sizes) == (planned.tensors, planned.sizes)
    of_checkpoint = open_subject(str(checkpoint))
    assert subject.shape == of_checkpoint.shape
    assert subject.n_parameters == of_checkpoint.n_parameters
    assert subject.n_active == of_checkpoint.n_active


def test_a_shard_that_is_missing_or_not_the_first(tmp_path: Path) -> None:
    files = FileOptions(shard_size=2 * 10**6)
    work = prepare(TRAINED / "tiny-mistral", find_quants(["q8_0"]), files)
    (artifact,) = build_work(work, tmp_path)
    second = sorted(artifact.path.parent.glob("*.gguf"))[1]
    with pytest.raises(GGUFError, match="give the first one"):
        open_subject(str(second))
    second.unlink()
    with pytest.raises(GGUFError, match="does not exist"):
        open_subject(str(artifact.path))


def test_bundled_models_have_the_tensors_of_the_real_ones() -> None:
    assert {"mixtral-8x22b", "mistral-7b"} <= set(bundled_models())
    subject = open_subject("mixtral-8x22b")
    assert subject.model is not None
    assert subject.model.targets == LARGE_MODELS["Mixtral-8x22B"].targets
    mebibytes = {v.name: round(v.tensor_bytes / 2**20) for v in subject.variants}
    expected = {
        "q8_0": 142_498, "q6_k": 110_182, "q5_k_m": 95_342,
        "q4_k_m": 81_626, "q3_k_m": 64_654, "q2_k": 49_694,
    }  # fmt: skip
    assert expected.items() <= mebibytes.items()
    assert subject.n_parameters == 140_620_634_112
    assert 39.0e9 < subject.n_active < 39.2e9


def test_what_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="There is no model 'mixtral'"):
        open_subject("mixtral")
    with pytest.raises(CheckpointError, match=r"There is no model '\./nowhere'"):
        open_subject("./nowhere")
    with pytest.raises(GGUFError, match="does not exist"):
        open_subject("nowhere.gguf")
    with pytest.raises(GGUFError, match="is not a sound GGUF file"):
        open_subject(__file__)
