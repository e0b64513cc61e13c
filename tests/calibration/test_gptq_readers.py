"""GPTQ artifacts in the programs that read them: all compute the same logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quantkit.building import engine
from quantkit.building.work import prepare_export
from quantkit.planning.quants import find_quants
from tests import auto_gptq, native_tools
from tests.calibration.runs import TINY
from tests.calibration.substitutes import logits, of_artifact
from tests.calibration.test_gptq import built
from tests.parity.both_ways import CONVERT

TOKENS: NDArray[np.int64] = np.random.default_rng(0).integers(3, 1024, (2, 48))

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral, 4 bits": ("tiny-mixtral", "gptq-int4", {}),
    "mixtral, 8 bits, whole rows": ("tiny-mixtral", "gptq-int8", {"group_size": -1}),
    "mistral, 4 bits, asymmetric": (
        "tiny-mistral",
        "gptq-int4",
        {"symmetric": False, "group_size": 32, "act_order": False},
    ),
    "mistral, 3 bits": ("tiny-mistral", "gptq-int3", {}),
    "mistral, 2 bits, asymmetric": ("tiny-mistral", "gptq-int2", {"symmetric": False}),
}


def dequantized_logits(model: Path, artifact: Path) -> NDArray[np.float32]:
    """Of the model with the artifact's dequantized weights, in float32."""
    found: NDArray[np.float32] = torch.stack(logits(model, TOKENS, of_artifact(artifact))).numpy()
    return found


def llama_logits(gguf: Path) -> NDArray[np.float32]:
    """What llama.cpp computes with a GGUF."""
    from llama_cpp import Llama

    llama: Any = Llama(str(gguf), n_ctx=64, logits_all=True, n_threads=1, n_gpu_layers=0)
    chunks = []
    for tokens in TOKENS.tolist():
        llama.reset()
        llama.eval(tokens)
        chunks.append(np.array(llama.scores[: len(tokens)], np.float32))
    llama.close()
    return np.stack(chunks)


def check_same(case: str, found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """The logits are the same, to within what a cache in float16 costs, at every position.

    In a mixture at nine of ten: where two experts are as good as each other, how a processor
    rounds decides between them. Weights that were read wrongly would spoil all.
    """
    errors = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    print(f"{case}: median {np.median(errors):.5f}, largest {errors.max():.5f}")  # noqa: T201 - shown with -s
    assert (errors < 1e-2).mean() >= (0.9 if "mixtral" in case else 1)


def export(artifact: Path, out: Path) -> Path:
    work = prepare_export(artifact, find_quants(["f32"]))
    (exported,) = engine.build(work, out, jobs=1, max_memory=2**30)
    return exported.path


@pytest.mark.parametrize("case", ["mixtral, 4 bits", "mistral, 3 bits"])
def test_our_export_in_llama_cpp(case: str, tmp_path: Path) -> None:
    name, quant, options = CASES[case]
    artifact = built(TINY / name, tmp_path, quant, chunks=2, **options).path
    wanted = dequantized_logits(TINY / name, artifact)
    check_same(case, llama_logits(export(artifact, tmp_path / "gguf")), wanted)


Read = tuple[NDArray[np.float32], Path]  # logits of dequantized weights, and what is read


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    """Every artifact."""
    made = {}
    for number, (case, (name, quant, options)) in enumerate(CASES.items()):
        work = tmp_path_factory.mktemp(f"readers-{number}")
        artifact = built(TINY / name, work, quant, chunks=2, **options).path
        made[case] = dequantized_logits(TINY / name, artifact), artifact
    return made


@pytest.mark.readers
def test_auto_gptq(artifacts: dict[str, Read], tmp_path: Path) -> None:
    """All in one process: importing takes it longest."""
    theirs = auto_gptq.logits([folder for _, folder in artifacts.values()], TOKENS, tmp_path)
    for (case, (wanted, _)), found in zip(artifacts.items(), theirs, strict=True):
        check_same(case, found, wanted)


@pytest.fixture(scope="module")
def converted(
    artifacts: dict[str, Read], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Read]:
    """What llama.cpp's converter makes of them, in one process for the same reason."""
    folder = tmp_path_factory.mktemp("converted")
    made = {
        case: (wanted, folder / f"{number}.gguf")
        for number, (case, (wanted, _)) in enumerate(artifacts.items())
    }
    jobs = [[str(artifacts[case][1]), str(gguf), "f32"] for case, (_, gguf) in made.items()]
    script, listing = folder / "convert.py", folder / "jobs.json"
    script.write_text(CONVERT)
    listing.write_text(json.dumps(jobs))
    native_tools.run(
        [native_tools.PYTHON, script, native_tools.CONVERTER, listing],
        makes=Path(f"{listing}.done"),
    )
    return made


@pytest.mark.native
@pytest.mark.parametrize("case", [case for case in CASES if "3 bits" not in case])
def test_llama_cpps_converter(converted: dict[str, Read], case: str) -> None:
    """It has no 3 bits."""
    wanted, gguf = converted[case]
    check_same(case, llama_logits(gguf), wanted)
