"""Chat templates: rendered as transformers does and as llama.cpp does, and compared."""
