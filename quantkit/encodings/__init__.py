"""Block formats: their sizes, and kernels from float rows to bytes. Pure: no files."""
