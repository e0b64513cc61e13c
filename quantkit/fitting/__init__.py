"""What a model needs on a machine: sizes, memory by part, placement, and what pages claim."""
