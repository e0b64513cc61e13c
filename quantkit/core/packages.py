"""Packages that only some commands need."""

import importlib.util

from quantkit.core.errors import MissingPackageError


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
        raise MissingPackageError(
            f"{purpose} needs {name}, which is not installed; pip install 'quantkit[{extra}]'."
        )
