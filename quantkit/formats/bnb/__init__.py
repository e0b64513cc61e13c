"""bitsandbytes artifacts: 4-bit nf4 and fp4, 8-bit rows; written, read back, loaded.

The stored tensors are those of bitsandbytes' ``QuantState.as_dict(packed=True)`` and of its
``Linear8bitLt``, which is also what transformers saves.
"""

from quantkit.formats.bnb.loading import load

__all__ = ["load"]
