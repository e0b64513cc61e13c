"""The converter that users get is vendor's, and runs with the packages that are pinned for it."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from quantkit.checkpoint.converter.fetch import KEPT
from quantkit.checkpoint.converter.kept import STAMP
from quantkit.checkpoint.converter.provision import Converter, find_converter
from quantkit.core.packages import EXTRAS
from tests import native_tools
from tests.checkpoint.vocabularies import sentencepiece_model

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[2]
VENDORS = native_tools.CONVERTER.parent


@pytest.fixture(scope="module")
def converter() -> Converter:
    """From the user's cache, or fetched into it."""
    return find_converter()


def run(converter: Converter, *command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(converter.packages), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_the_source_is_vendors(converter: Converter) -> None:
    files = {
        str(path.relative_to(converter.tree))
        for path in converter.tree.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != STAMP
    }
    assert len(files) > 100
    for name in files:
        assert (converter.tree / name).read_bytes() == (VENDORS / name).read_bytes(), name
    for kept in KEPT:
        assert (converter.tree / kept).exists(), kept


def test_what_the_converter_opens_beside_itself_is_there(converter: Converter) -> None:
    """It names them in its code; a new one has to be kept, too."""
    code = "".join(path.read_text() for path in (converter.tree / "conversion").glob("*.py"))
    builtin = set(re.findall(r'_set_vocab_builtin\("([\w.-]+)"', code))
    assert builtin
    for name in builtin:
        assert (converter.tree / "models" / f"ggml-vocab-{name}.gguf").is_file()
    # Path(__file__).parent.parent / "models" / "templates", or in one string.
    beside = re.findall(r"parent\.parent / [\"']([\w-]+)[\"'/](?: / [\"'])?([\w-]*)", code)
    assert set(beside) == {("gguf-py", ""), ("models", "templates")}


def test_the_extra_has_all_that_the_packages_ask_for(converter: Converter) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = {re.split(r"[^\w-]", entry)[0].lower() for entry in project["dependencies"]}
    found = list(importlib.metadata.distributions(path=[str(converter.packages)]))
    brought = {str(entry.metadata["Name"]).lower().replace("_", "-") for entry in found}
    assert len(brought) == 5
    wanted = {
        re.split(r"[^\w.-]", line)[0].lower().replace("_", "-")
        for entry in found
        for line in entry.requires or []
        if "extra ==" not in line
    }
    assert wanted - brought - ours - set(EXTRAS["convert"]) == {"hf-xet"}  # for downloads alone


def test_a_conversion_with_the_pinned_packages_has_the_same_bytes(
    converter: Converter, tmp_path: Path
) -> None:
    checkpoint = ROOT / "tests/checkpoints/tiny-mistral"
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    script = converter.tree / "convert_hf_to_gguf.py"
    run(converter, script, checkpoint, "--outfile", ours, "--outtype", "bf16")
    native_tools.convert(checkpoint, theirs, "bf16")
    assert ours.read_bytes() == theirs.read_bytes()


CHILD = """
import sys
from pathlib import Path

tree, packages, model = sys.argv[1:]
sys.path[:1] = [tree, packages]
sys.modules["mistral_common"] = None
import google.protobuf, huggingface_hub, sentencepiece, tokenizers, transformers
import conversion, gguf

conversion.load_all_models()
assert not conversion._mistral_common_installed
for module in (google.protobuf, huggingface_hub, sentencepiece, tokenizers, transformers):
    assert Path(module.__file__).is_relative_to(packages), module
assert Path(gguf.__file__).is_relative_to(tree)

# Of T5 and BERT the converter reads it itself, with protobuf.
from sentencepiece import sentencepiece_model_pb2
parsed = sentencepiece_model_pb2.ModelProto()
parsed.ParseFromString(Path(model).read_bytes())
print(len(parsed.pieces), transformers.__version__)
"""


def test_every_converter_loads_and_sentencepiece_models_are_read(
    converter: Converter, tmp_path: Path
) -> None:
    model = tmp_path / "spiece.model"
    model.write_bytes(sentencepiece_model(500))
    out = run(converter, "-c", CHILD, converter.tree, converter.packages, model)
    assert out.splitlines()[-1] == "500 4.57.6"
