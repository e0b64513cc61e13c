"""One pass for sensitivities over random tokens: what `benchmarks.calibrate` measures as a job.

``python -m benchmarks.sensitivity CHECKPOINT --chunks 16`` prints what the pass found of each kind
of tensor.
"""

import argparse
from pathlib import Path

from quantkit.calibration.settings import Settings
from quantkit.calibration.text import random_corpus
from quantkit.checkpoint.open import open_checkpoint, open_model
from quantkit.checkpoint.text_config import text_config
from quantkit.recipes.sensitivity import measure_sensitivities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    vocabulary = text_config(checkpoint.config)["vocab_size"]
    corpus = random_corpus(vocabulary, options.chunks, options.context)
    found = measure_sensitivities(checkpoint, open_model(checkpoint), corpus, Settings())
    for name, sensitivity in found.items():
        print(f"{name}: {sensitivity:.3g}")


if __name__ == "__main__":
    main()
