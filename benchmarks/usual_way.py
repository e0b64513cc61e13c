"""The usual way to several quants: convert to a bf16 GGUF, then quantize that, one by one.

``python benchmarks/usual_way.py CHECKPOINT FOLDER THREADS IMATRIX QUANT...`` leaves
FOLDER/QUANT.gguf and prints the seconds of each step as JSON; without an importance matrix IMATRIX
is empty. ``build.py`` runs it as a process of its own.
"""

import json
import sys
import time
from pathlib import Path

from tests.architectures.ggufs import convert
from tests.native_tools import quantize


def main(checkpoint: str, folder: str, threads: str, imatrix: str, *quants: str) -> None:
    matrix = Path(imatrix) if imatrix else None
    reference = Path(folder, "bf16.gguf")
    seconds = {}
    start = time.perf_counter()
    # In the converter's own main, which is only let off recognizing the tests' tokenizers.
    convert({"": Path(checkpoint)}, {"": reference}, "bf16", ())
    seconds["convert"] = time.perf_counter() - start
    for quant in quants:
        start = time.perf_counter()
        out = Path(folder, f"{quant}.gguf")
        quantize(reference, out, quant, imatrix=matrix, threads=int(threads))
        seconds[quant] = time.perf_counter() - start
    json.dump(seconds, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
