"""Any decoder of transformers run layer by layer: its own forward, over all chunks in step."""
