"""What llama.cpp's own tools make of the tiny checkpoints, as sha256 of whole files.

``python -m tests.parity.golden`` writes ``golden.json`` anew with ``convert_hf_to_gguf.py`` and
``llama-quantize`` of the llama.cpp that ``make vendor`` builds. The plain tests hold quantkit's
files to it without these tools; the native ones hold it to the tools.
"""

import hashlib
import json
import tempfile
from pathlib import Path

from tests import native_tools
from tests.parity.both_ways import PLAIN_QUANTS, convert
from tests.parity.cases import CASES

FILE = Path(__file__).with_name("golden.json")
MODELS = ("tiny-mixtral", "tiny-mistral")


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def made_by_the_tools(folder: Path) -> dict[str, dict[str, str]]:
    """The sha256 of each quant that needs no importance matrix, by model and quant."""
    sources = convert(folder, {name: CASES[name] for name in MODELS})
    found: dict[str, dict[str, str]] = {}
    for name, source in sources.items():
        source.require()
        for quant in PLAIN_QUANTS:
            file = folder / f"{name}-{quant}.gguf"
            native_tools.quantize(source.converted, file, quant, threads=2)
            found.setdefault(name, {})[quant] = sha256_of(file)
            file.unlink()
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="quantkit-") as made:
        FILE.write_text(json.dumps(made_by_the_tools(Path(made)), indent=1) + "\n")
