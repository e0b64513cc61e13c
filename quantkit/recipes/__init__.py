"""Which encoding each tensor should get: measured or assumed losses, exact bytes, one search."""
