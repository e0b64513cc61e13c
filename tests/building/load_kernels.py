"""For a fork server to import: loads the kernels, so that its children need not.

That is most of a second of each child's time, most of it numba's start.
"""

from quantkit.encodings.encoding import encoding
from quantkit.encodings.kernel import load_kernel

# Of q4_0 and q8_0, output.weight alone has a kernel that numba loads.
load_kernel("fast").prepare([(encoding("Q6_K"), False)], ["BF16"], lambda _name: None)
