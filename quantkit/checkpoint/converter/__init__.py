"""Any checkpoint that llama.cpp's converter knows: it describes, quantkit reads and encodes.

Here, `describe` makes a checkpoint of what it says, and `rows` asks for what has to be computed.
Apart, in the process that `process` starts, `child` answers: `capture` lets the converter describe
a model without weights, `expressions` evaluates rows of what it would have written.
"""
