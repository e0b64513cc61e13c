"""bitsandbytes artifacts: 4-bit nf4 and fp4, 8-bit rows; written, read back, loaded.

The stored tensors are those of bitsandbytes' ``QuantState.as_dict(packed=True)`` and of its
``Linear8bitLt``, which is also what transformers saves.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.formats.bnb.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """``load``, which is imported when it is asked for: planning such a folder needs none of it."""
    if name == "load":
        from quantkit.formats.bnb.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
