"""Build, size, smoke-test and publish every quant of a large language model."""

__version__ = "0.1.0"
