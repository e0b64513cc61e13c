"""GPTQ folders in other programs' hands."""
