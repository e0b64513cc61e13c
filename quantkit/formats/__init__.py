"""Output formats: each turns a plan into files laid out to the byte."""
