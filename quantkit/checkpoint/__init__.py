"""Readers: what a checkpoint holds, learned from its headers alone."""
