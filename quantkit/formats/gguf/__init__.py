"""GGUF: metadata, layout and reading. Spec: ``docs/gguf.md`` of ggml."""
