"""``fit`` on what the converter makes of random checkpoints, against real loads and real builds."""

from pathlib import Path

import pytest

from quantkit.core.errors import GGUFError
from quantkit.fitting.probe import buffers, probe
from quantkit.fitting.settings import ContextSettings
from quantkit.fitting.subject import PlanOptions, open_subject
from quantkit.fitting.verdict import needs_at
from quantkit.planning.quants import find_quants
from tests.architectures.ggufs import small_ggufs
from tests.architectures.small import SMALL
from tests.building.builds import build
from tests.fitting.test_kinds import allocated, differences, figures

pytestmark = pytest.mark.native

# Those that llama.cpp loads for certain: windows, latent caches, shared layers, states, experts,
# hybrids, encoders. Of the rest of ``SMALL`` it does not take every one for a whole model.
LOADED = {
    "llama", "mixtral", "llama4", "gemma2", "gemma4", "cohere2", "olmo3", "gpt-oss", "deepseek2",
    "deepseek2-lite", "qwen3moe", "qwen3next", "qwen35", "jamba", "falcon-h1", "nemotron_h_moe",
    "lfm2", "mamba", "mamba2", "rwkv7", "kimi-linear", "bloom", "t5", "t5encoder", "bert",
    "modern-bert", "gemma-embedding",
}  # fmt: skip
BUILT = ("gemma4", "gpt-oss", "deepseek2", "jamba", "mamba2", "lfm2", "t5", "bert", "falcon-h1")


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_ggufs(tmp_path_factory)


@pytest.mark.parametrize("name", SMALL)
def test_figures_are_those_of_a_real_load(ggufs: dict[str, Path], name: str) -> None:
    subject = open_subject(str(ggufs[name]))
    settings = ContextSettings(1024)
    try:
        curve = probe(subject, settings)
    except GGUFError:
        if name in LOADED:
            raise
        with pytest.raises(GGUFError):
            buffers(ggufs[name], settings, [1024], dry=False)
        return
    found = curve.at(1024)
    assert differences(figures(found), allocated(ggufs[name], settings)) == {}
    needs = needs_at(subject.variants[0], curve, 1024).beside
    assert (sum(needs.kv), sum(needs.states)) == (found.kv, found.state)


@pytest.mark.parametrize("name", BUILT)
def test_files_are_as_long_as_planned(ggufs: dict[str, Path], name: str, tmp_path: Path) -> None:
    quants = ("f16", "q8_0", "q4_k_m", "iq4_xs")
    subject = open_subject(str(ggufs[name]), PlanOptions(find_quants(quants)))
    planned = {variant.name: variant.file_bytes for variant in subject.variants}
    made = build(ggufs[name], tmp_path, *quants, check=None)
    assert planned == {a.layout.plan.quant.name: a.path.stat().st_size for a in made}
    assert set(planned) == set(quants)
