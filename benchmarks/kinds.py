"""How sensitive each kind of tensor is in the tiny models: ``[sensitivities]`` of recipes.toml.

``python -m benchmarks.kinds`` measures the sensitivity of every tensor of the tiny checkpoints over
the middle third of what they were trained on, as ``quantkit measure`` does, and adds up those of a
kind over all layers: a layer's share of that is what a default gives it. It prints the mean over
both models.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from benchmarks.search import CHECKPOINTS, TINY
from quantkit.calibration.settings import Settings
from quantkit.calibration.sources import TextSource
from quantkit.calibration.text import make_corpus
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.planning.names import category_of
from quantkit.recipes.sensitivity import measure_sensitivities
from tests.checkpoints.text import training_text

KINDS = (
    "output",
    "token_embd",
    "attn_v",
    "attn_k",
    "attn_q",
    "attn_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
)
MEMORY = 2**30


def sensitivities(name: str, text: Path, chunks: int) -> dict[str, float]:
    checkpoint = open_checkpoint(CHECKPOINTS / name)
    corpus = make_corpus(checkpoint, (TextSource(text),), chunks, 512)
    settings = Settings(max_memory=MEMORY)
    found = measure_sensitivities(checkpoint, open_model(checkpoint), corpus, settings)
    of_kind: dict[str, float] = defaultdict(float)
    for tensor, sensitivity in found.items():
        if "gate_inp" not in tensor:  # which stays as it is
            of_kind[category_of(tensor)] += sensitivity
    return of_kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=24)
    chunks = parser.parse_args().chunks
    whole = training_text()
    third = len(whole) // 3
    with TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(whole[third : 2 * third])
        found = [sensitivities(name, text, chunks) for name in TINY]
    print("# " + ", ".join(TINY))
    for kind in KINDS:
        each = [one[kind] for one in found]
        print(f"{kind} = {fmean(each):.2g}  # {', '.join(f'{s:.3g}' for s in each)}")


if __name__ == "__main__":
    main()
