"""A small Llama that was trained longer than the checkpoints of the tests, as a third model.

``python -m benchmarks.longer_trained FOLDER`` begins with the weights of tiny-mistral, some of its
layers twice, and trains on Python's help topics and standard library, without the held-out topics.
A thousand windows take one core some ten minutes. The tokenizer is tiny-mistral's.
"""

import argparse
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from quantkit.calibration.text import built_in_text
from tests.checkpoints import train
from tests.checkpoints.text import heldout_text

BEGINNING = Path(train.__file__).parent / "tiny-mistral"
LAYERS = (0, 1, 1, 2, 2, 3)  # of tiny-mistral, in the order of the new ones
CHARACTERS = 1500  # of a window of text, at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=1000, help="of 512 tokens, seen once")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(train.SEED)
    encoder = sentencepiece.SentencePieceProcessor(model_file=str(BEGINNING / "tokenizer.model"))
    held_out = encoder.encode(heldout_text())
    wanted = options.windows * (train.CONTEXT - 1)
    tokens = encoder.encode(text()[: options.windows * CHARACTERS * 2])[:wanted]
    model = beginning()
    train.train(model, tokens, epochs=1)
    options.folder.mkdir(parents=True, exist_ok=True)
    train.save_model(model, options.folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(BEGINNING / name, options.folder)
    for name, folder in (("before", BEGINNING), ("after", options.folder)):
        print(f"held-out perplexity {name}: {train.measure(folder, held_out, 0.0).perplexity:.2f}")


def text() -> str:
    """Python's topics and sources, without any paragraph that the held-out text has."""
    held_out = {" ".join(paragraph.split()) for paragraph in heldout_text().split("\n\n")}
    paragraphs = built_in_text().split("\n\n")
    return "\n\n".join(p for p in paragraphs if " ".join(p.split()) not in held_out)


def beginning() -> Any:
    """The model before it is trained on."""
    old = transformers.AutoModelForCausalLM.from_pretrained(BEGINNING, dtype=torch.float32)
    shape = {**train.SHAPE, "num_hidden_layers": len(LAYERS)}
    shape.pop("sliding_window")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**shape, intermediate_size=old.config.intermediate_size)
    )
    weights = old.state_dict()
    for name in model.state_dict():
        head, _, rest = name.partition(".layers.")
        if rest:
            number, _, own = rest.partition(".")
            weights[name] = old.state_dict()[f"{head}.layers.{LAYERS[int(number)]}.{own}"].clone()
    model.load_state_dict(weights)
    return model


if __name__ == "__main__":
    main()
