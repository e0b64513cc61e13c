"""GPTQ artifacts in AutoGPTQ's checkpoint format: packed words, the folder, and the way back."""
