"""For a fork server to import: all that a build imports or loads, so that its children need not.

That is a second and more of each child's time, most of it numba's start.
"""

import gguf  # noqa: F401
import sentencepiece  # noqa: F401

from quantkit.build import engine  # noqa: F401
from quantkit.checkpoint import raw_mistral  # noqa: F401
from quantkit.encodings.encoding import encoding
from quantkit.encodings.kernel import load_kernel

# Of q4_0 and q8_0, output.weight alone has a kernel that numba loads.
load_kernel("fast").prepare([(encoding("Q6_K"), False)], ["BF16"], lambda _name: None)
