"""Our own kernels: the bytes of ggml's, with one block per lane of the processor's vectors."""
