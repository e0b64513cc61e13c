"""Any checkpoint that llama.cpp's converter knows: it describes, quantkit reads and encodes.

`process` runs the converter apart, where `child` answers for it: `capture` lets it describe a
model without weights, `expressions` gives rows of what it would have written.
"""
