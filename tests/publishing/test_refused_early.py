"""Whether a build may be published is asked before a text is run or a folder is filled."""

import re
from pathlib import Path

import pytest

from quantkit.building import engine
from quantkit.calibration.journaled import Run
from tests.calibration.runs import text_file
from tests.cli.command import quantkit, refusal
from tests.hub_writes import READER, HubStore
from tests.random_checkpoints import random_checkpoint

REPO = "me/Model"
WAYS = {
    "imatrix": ("-q", "q4_k_m", "--imatrix", "auto"),
    "gptq": ("-q", "gptq-int4"),
    "bnb": ("-q", "bnb-nf4"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("license_", "token", "names"),
    [
        ("", None, "license of the model in .* is not known"),
        ("mit", READER, f"may not write to {REPO}"),
        ("cc-by-nd-4.0", None, "does not allow changed versions"),
    ],
    ids=["no license", "no rights", "a license that forbids it"],
)
def test_what_may_not_be_published_is_not_begun(
    hub: HubStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    license_: str,
    token: str | None,
    names: str,
) -> None:
    def expensive(*_: object, **__: object) -> None:
        raise AssertionError("The work was begun.")

    monkeypatch.setattr(Run, "execute", expensive)
    monkeypatch.setattr(engine, "build", expensive)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    model = random_checkpoint(tmp_path / "model", "mistral", num_hidden_layers=1)
    said = f"---\nlicense: {license_}\n---\n" if license_ else "A model.\n"
    (model / "README.md").write_text(said)
    text = ("--text", text_file(tmp_path), "--chunks", "2", "--context", "64")
    out = tmp_path / "out"
    wish = (*WAYS[way], "-o", out, "--publish", REPO, *(text if way != "bnb" else ()))
    sentence = refusal(quantkit("build", model, *wish))
    assert re.search(names, sentence), sentence
    assert not out.exists()
    assert not hub.received
