"""The engine: source rows in, encoded for every quant, each written at its planned offset."""
