"""The usual way to several quants: convert to a bf16 GGUF, then quantize that, one by one.

``python benchmarks/usual_way.py CHECKPOINT FOLDER THREADS QUANT...`` leaves FOLDER/QUANT.gguf and
prints the seconds of each step as JSON. ``build.py`` runs it as a process of its own.
"""

import json
import sys
import time
from pathlib import Path

from tests.architectures.ggufs import convert
from tests.native_tools import quantize


def main(checkpoint: str, folder: str, threads: str, *quants: str) -> None:
    reference = Path(folder, "bf16.gguf")
    seconds = {}
    start = time.perf_counter()
    # In the converter's own main, which is only let off recognizing the tests' tokenizers.
    convert({"": Path(checkpoint)}, {"": reference}, "bf16", ())
    seconds["convert"] = time.perf_counter() - start
    for quant in quants:
        start = time.perf_counter()
        quantize(reference, Path(folder, f"{quant}.gguf"), quant, threads=int(threads))
        seconds[quant] = time.perf_counter() - start
    json.dump(seconds, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
