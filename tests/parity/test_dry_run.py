"""The type of every tensor of large models, against ``llama-quantize --dry-run``.

No weights are needed for that: a sparse file with a real header is enough.
"""

from pathlib import Path

import pytest

from quantkit.families.model import Decoder
from quantkit.formats.gguf.layout import lay_out
from quantkit.formats.gguf.metadata import ModelMetadata, bare_entries
from quantkit.planning.plan import outline_plan
from quantkit.planning.quants import all_quants
from tests.architectures.dry_run import imatrix_of_nothing, mebibytes, report, types
from tests.planning.large_models import LARGE_MODELS

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bf16 GGUF of each model, at its full size of up to 281 GB, without its weights."""
    base = tmp_path_factory.mktemp("headers")
    return {name: write_header(base, name, model) for name, model in LARGE_MODELS.items()}


@pytest.fixture(scope="module")
def any_imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance matrix of nothing: a dry run asks only whether there is one."""
    return imatrix_of_nothing(tmp_path_factory.mktemp("imatrix") / "any.gguf")


# One of them has rows that are no multiple of q1_0's 128, and nothing is taken instead.
CASES = [
    (name, quant)
    for name in LARGE_MODELS
    for quant in all_quants()
    if (name, quant) != ("SmolLM2-135M", "q1_0")
]


@pytest.mark.parametrize("has_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize(("name", "quant"), CASES)
def test_every_type_is_llama_quantizes(
    headers: dict[str, Path], any_imatrix: Path, name: str, quant: str, has_imatrix: bool
) -> None:
    printed = report(headers[name], quant, any_imatrix if has_imatrix else None)

    plan = outline_plan(LARGE_MODELS[name], all_quants()[quant], has_imatrix)

    assert list(types(printed).items()) == [
        (tensor.target.name, tensor.encoding.name) for tensor in plan.tensors
    ]
    assert mebibytes(printed) == f"{plan.n_bytes / 2**20:.2f}"


def write_header(folder: Path, name: str, model: Decoder) -> Path:
    plan = outline_plan(model, all_quants()["bf16"], has_imatrix=False)
    (file,) = lay_out(plan, ModelMetadata(name, bare_entries(model))).files
    path = folder / file.name
    with path.open("wb") as stream:
        stream.write(file.header)
        stream.truncate(file.n_bytes)
    return path
