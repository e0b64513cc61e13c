"""The command line: parsing, progress, rendering. The only floor that prints."""
