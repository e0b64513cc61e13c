"""Every key of a tekken.json against llama.cpp's own converter, which needs mistral-common."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import environments, native_tools
from tests.checkpoint import vocabularies as v
from tests.checkpoint.llama_tokens import write_vocabulary
from tests.checkpoint.test_tokenizer_parity import CONFIG, CONVERT, tokenizer_fields

pytestmark = pytest.mark.native

TEMPLATE = "tokenizer.chat_template"


def without_specials(tekken: v.Json) -> None:
    del tekken["special_tokens"]
    tekken["config"]["version"] = "v3"


CASES: dict[str, Callable[[v.Json], Any]] = {
    "v7": lambda _: None,
    "v3_without_specials": without_specials,
    "fewer_tokens_than_listed": lambda t: t["config"].update(default_vocab_size=380),
}


def test_every_key_is_the_converters(tmp_path: Path) -> None:
    site = environments.python("mistral-common").parents[1] / "lib"
    packages = next(site.glob("python*/site-packages"))
    jobs = []
    for name, change in CASES.items():
        tekken = v.tekken()
        change(tekken)
        config = {**CONFIG, "vocab_size": tekken["config"]["default_vocab_size"]}
        v.write(tmp_path / name, config__json=config, tekken__json=tekken)
        jobs.append([str(tmp_path / name), f"{tmp_path / name}.gguf", None])
    script, listing = tmp_path / "convert.py", tmp_path / "jobs.json"
    script.write_text(f"import sys\nsys.path.insert(1, {str(packages)!r})\n{CONVERT}")
    listing.write_text(json.dumps(jobs))
    tree = native_tools.CONVERTER.parent
    native_tools.run([native_tools.PYTHON, script, tree, listing], makes=Path(f"{listing}.done"))
    for name in CASES:
        failed = Path(f"{tmp_path / name}.gguf.failed")
        assert not failed.exists(), failed.read_text()
        theirs = tokenizer_fields(Path(f"{tmp_path / name}.gguf"))
        ours = tokenizer_fields(write_vocabulary(tmp_path / name))
        # The converter puts in the name of a template, which newer readers take for its text.
        assert theirs.pop(TEMPLATE).value in ("mistral-v7-tekken", "mistral-v3-tekken")
        assert list(ours) == list(theirs)
        assert {k: f.raw for k, f in ours.items()} == {k: f.raw for k, f in theirs.items()}
