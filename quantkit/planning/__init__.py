"""From a quant's public name to the encoding and the bytes of every tensor."""
