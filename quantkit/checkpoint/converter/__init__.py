"""llama.cpp's converter, which knows how any checkpoint becomes a GGUF: had, kept and asked."""
