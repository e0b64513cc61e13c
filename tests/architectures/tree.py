"""A tree of the converter that takes tokenizers which were trained a minute ago."""

import shutil
from pathlib import Path

import pytest

from quantkit.checkpoint.converter.provision import find_converter
from tests.architectures.ggufs import shared

_RECOGNIZE = """

from tests.architectures.converter import recognize_every_tokenizer

recognize_every_tokenizer()
"""


def lenient_tree(factory: pytest.TempPathFactory) -> Path:
    """A tree for ``Wish.tree`` that names an unknown pre-tokenizer as the tests' reference does."""
    with shared(factory, "lenient-tree") as folder:
        tree = folder / "llama.cpp"
        if not tree.exists():
            partial = folder / "partial"
            shutil.copytree(find_converter().tree, partial)
            with (partial / "conversion" / "__init__.py").open("a") as module:
                module.write(_RECOGNIZE)
            partial.rename(tree)
    return tree
