"""The full ladder of tiny-mixtral with GPTQ and bnb: published, downloaded, verified, run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.verification.smoke import smoke
from tests.calibration.runs import text_file
from tests.cli.command import quantkit, refusal
from tests.hub_writes import HubStore
from tests.publishing.builds import SOURCE

pytestmark = pytest.mark.native

REPOS = {family: f"someone/Tiny-Mixtral-{family}" for family in ("GGUF", "GPTQ", "bnb")}


def test_the_ladder(hub: HubStore, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard, snapshot_download

    out = tmp_path / "out"
    quants = [word for q in ("gguf-all", "gptq-int4", "bnb-nf4", "bnb-int8") for word in ("-q", q)]
    options = ("--jobs", 1, "--text", text_file(tmp_path), "--chunks", 4, "-o", out)
    built = quantkit("build", SOURCE, *quants, *options)
    assert built.code == 0, built
    command = ("publish", out, "--checkpoint", SOURCE, "--repo")
    assert "--format gguf or --format gptq" in refusal(quantkit(*command, "someone/Everything"))
    for family, repo in REPOS.items():
        outcome = quantkit(*command, repo)
        assert outcome.code == 0, outcome
        hub.part_bytes = 10**6  # the later ones go up in parts
        copy = Path(snapshot_download(repo, local_dir=tmp_path / family))
        for place in (copy, repo):
            found = json.loads(quantkit("verify", place, "--json").out)
            assert found["ok"]
            assert not found["unlisted"]
        card = ModelCard.load(copy / "README.md")
        assert card.data.license == "apache-2.0"
        assert "Published without" not in card.text
        assert str(tmp_path).encode() not in (copy / "quantkit.json").read_bytes()
    ggufs = sorted((tmp_path / "GGUF").glob("*.gguf"))
    assert len(ggufs) == 7
    for file in ggufs:
        assert smoke(file, threads=1).ok, file

    # The one GPTQ artifact lies at the top; llama.cpp runs it by way of a GGUF.
    exported = quantkit("export", tmp_path / "GPTQ", "--to", "q8_0", "-o", tmp_path / "exported")
    assert exported.code == 0, exported
    # The two of bitsandbytes have a folder each.
    folders = sorted(path.name for path in (tmp_path / "bnb").iterdir() if path.is_dir())
    kinds = [name for name in folders if not name.startswith(".")]
    assert [name.rpartition("-bnb-")[2] for name in kinds] == ["int8", "nf4"]
    for kind in kinds:
        where = tmp_path / "bnb" / kind
        target = tmp_path / "exported" / kind
        assert quantkit("export", where, "--to", "q8_0", "-o", target).code == 0

    _run_as_the_card_says(tmp_path / "bnb", "bnb")
    _run_as_the_card_says(tmp_path / "GPTQ", "gptq")


def _run_as_the_card_says(copy: Path, kind: str) -> None:
    """Load a repository for transformers by the lines that its card shows."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(copy / "README.md").text
    (code, *_) = [
        block.partition("```")[0]
        for block in card.split("```python\n")
        if block.startswith(f"from quantkit.formats.{kind}")
    ]
    copy.rename(copy.with_name(f"Tiny-Mixtral-{copy.name}"))  # as the card downloads it
    code = code.replace('device_map="auto"', 'device_map="cpu"')
    code += "print(model(**tokenizer('Hello', return_tensors='pt')).logits.isfinite().all().item())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy.parent,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.strip().endswith("True"), done.stderr
