"""Freed memory that is kept for the next slab."""

import platform
import subprocess
import sys

import pytest

from quantkit.building.cluster.calls import SLAB_MEMORY

# Twice the arrays of a slab, one after the other; how often the second time a page was missing.
_SLABS = """
import resource, sys
import numpy as np
from quantkit.building.heap import keep_freed

def one_slab():
    return [np.ones(size * 2**20, np.uint8) for size in (8, 16, 16)]

if keep := int(sys.argv[1]):
    keep_freed(keep)
one_slab()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
one_slab()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: int) -> int:
    run = [sys.executable, "-c", _SLABS, str(keep)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_what_a_slab_freed_is_there_for_the_next() -> None:
    assert faults(keep=SLAB_MEMORY) < 50
    assert faults(keep=0) > 500  # or keeping it would be no use
