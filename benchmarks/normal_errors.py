"""The relative squared error of every encoding that recipes choose from, on normal rows.

``python -m benchmarks.normal_errors`` encodes 2**20 standard normal weights in rows of 4096 by
ggml, every column equally important, and decodes them. It prints the lines of ``[errors]`` in
``profiles/recipes.toml``: squared differences over squared weights.
"""

import numpy as np

from quantkit.encodings import ggml
from quantkit.encodings.encoding import encoding
from quantkit.recipes.assumed import normal_errors

ROWS, COLUMNS = 256, 4096


def measure(name: str, rows: int = ROWS, columns: int = COLUMNS) -> float:
    weights = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    kind = encoding(name)
    encoded = ggml.encode(weights, kind, np.ones(columns, np.float32))
    decoded = ggml.decode(encoded.reshape(-1), kind).reshape(weights.shape)
    exact = weights.astype(np.float64)
    return float(np.square(decoded - exact).sum() / np.square(exact).sum())


def main() -> None:
    for name in normal_errors():
        print(f"{name} = {measure(name):.3g}")


if __name__ == "__main__":
    main()
