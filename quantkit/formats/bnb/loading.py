"""Load an artifact into transformers, with its experts quantized."""

from pathlib import Path
from typing import Any


def load(folder: str | Path, **options: Any) -> Any:
    """The model in an artifact's folder."""
    raise NotImplementedError((folder, options))
