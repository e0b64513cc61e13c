"""GPTQ artifacts in AutoGPTQ's checkpoint format: packed words, the folder, and the way back."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.formats.gptq.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``load``, which is imported when it is asked for: planning such a folder needs none of it."""
    if name == "load":
        from quantkit.formats.gptq.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
