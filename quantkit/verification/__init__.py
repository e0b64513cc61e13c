"""Proof that an artifact runs: llama.cpp in a subprocess, the smoke test, and the doctor."""
