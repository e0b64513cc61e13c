"""The size of every quant of the bundled models, against ``llama-quantize --dry-run``."""

from pathlib import Path

import pytest

from quantkit.core.profiles import load_profile
from quantkit.families import find_family
from quantkit.families.model import Decoder
from quantkit.planning.plan import outline_plan
from quantkit.planning.quants import all_quants
from tests.architectures.dry_run import mebibytes, report, types
from tests.parity.test_dry_run import write_header

pytestmark = pytest.mark.native

NAMES = ("mixtral-8x22b", "mixtral-8x7b", "mistral-22b", "mistral-7b")


def model_of(name: str) -> Decoder:
    config = load_profile(f"models/{name}.toml")["config"]
    return find_family(config).describe(config, ())


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("bundled")
    return {name: write_header(base, name, model_of(name)) for name in NAMES}


@pytest.mark.parametrize("quant", all_quants())
@pytest.mark.parametrize("name", NAMES)
def test_size_is_llama_quantizes(headers: dict[str, Path], name: str, quant: str) -> None:
    output = report(headers[name], quant)

    plan = outline_plan(model_of(name), all_quants()[quant], has_imatrix=False)

    assert list(types(output).items()) == [
        (tensor.target.name, tensor.encoding.name) for tensor in plan.tensors
    ]
    assert mebibytes(output) == f"{plan.n_bytes / 2**20:.2f}"
