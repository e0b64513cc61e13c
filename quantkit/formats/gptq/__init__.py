"""GPTQ artifacts in AutoGPTQ's checkpoint format: packed words, the folder, and the way back."""

from quantkit.formats.gptq.loading import load

__all__ = ["load"]
