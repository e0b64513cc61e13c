"""A variant beside its base, from the build to the Hub: its own file, its base's file type."""

import json
from pathlib import Path

from quantkit.checkpoint.gguf import read_header
from quantkit.verification.subjects import outline_subjects
from tests.building.builds import build
from tests.cli.command import quantkit
from tests.hub_writes import HubStore
from tests.publishing import builds

BASE, VARIANT = "Tiny-Mixtral-8x2.1M-Q2_K", "Tiny-Mixtral-8x2.1M-Q2_K_L"
REPO = "someone/Tiny-Mixtral-GGUF"


def test_a_variant_is_published_beside_its_base(hub: HubStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(builds.SOURCE, out, "q2_k", "q2_k_l", jobs=1, check=builds.check)
    manifest = json.loads((out / "quantkit.json").read_text())["artifacts"]
    assert {name: entry["quant"] for name, entry in manifest.items()} == {
        BASE: "q2_k",
        VARIANT: "q2_k_l",
    }
    headers = [read_header(out / f"{name}.gguf") for name in (BASE, VARIANT)]
    assert [header.metadata["general.file_type"] for header in headers] == [10, 10]
    assert [subject.quant for subject in outline_subjects([out])] == ["q2_k_l", "q2_k"]

    sent = quantkit("publish", out, "--checkpoint", builds.SOURCE, "--repo", REPO)
    assert sent.code == 0, sent
    card = hub.repos[REPO]["README.md"].decode()
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| [`")]
    assert [row[1].strip("*") for row in rows] == ["q2_k_l", "q2_k"]
    assert "--quant q2_k_l" in card
    assert quantkit("verify", REPO).code == 0
    for name, quant in ((BASE, "q2_k"), (VARIANT, "q2_k_l")):
        found = json.loads(quantkit("fit", f"{REPO}/{name}.gguf", "--ram", "8GB", "--json").out)
        assert [row["quant"] for row in found["quants"]] == [quant]
