"""Calibration: the original checkpoint run over text, one decoder layer in memory at a time."""
