"""Packages that only some commands need, and the name that this one has on the package index."""

import importlib.util

from quantkit.core.errors import MissingPackageError

DISTRIBUTION = "quantkit-llm"
"""The name on the package index, where ``quantkit`` is somebody else's; the import is ours."""

# What each extra of pyproject.toml brings, by the names to install. A message names these, because
# an extra of a name that a user did not install by would bring another package.
EXTRAS = {
    "plot": ("matplotlib",),
    "calibrate": ("torch", "transformers"),
    "gptq": ("accelerate", "safetensors", "torch", "transformers"),
    "transformers": ("torch", "transformers"),
    "bnb": ("accelerate", "bitsandbytes", "safetensors", "torch", "transformers"),
    "convert": (
        "filelock",
        "fsspec",
        "packaging",
        "pip",
        "pyyaml",
        "regex",
        "requests",
        "safetensors",
        "torch",
        "tqdm",
        "typing-extensions",
    ),
    "sign": ("'model-signing>=1.1,<1.2'", "pyopenssl"),
    "ray": ("'ray[client]'",),
}


def require(package: str, name: str, extra: str, purpose: str) -> None:
    """Check that a package can be imported, without importing it.

    Args:
        package: what is imported.
        name: what people call it.
        extra: the extra of quantkit that brings it.
        purpose: what needs it.

    Raises:
        MissingPackageError: it is not installed.

    """
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(why_missing(name, extra, purpose))


def why_missing(name: str, extra: str, purpose: str) -> str:
    """The sentence that a package is not there, and how to get it."""
    return f"{purpose} needs {name}, which is not installed; {install(extra)}."


def install(extra: str) -> str:
    """The command that installs what an extra brings."""
    return f"pip install {' '.join(EXTRAS[extra])}"
