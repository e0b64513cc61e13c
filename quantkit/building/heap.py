"""What the C library's allocator does with the memory of slabs that are done."""

import ctypes

# Of glibc's malloc.h; other C libraries have no mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE = 2**20  # bytes
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no more (its HEAP_MAX_SIZE / 2)


def share_heap() -> None:
    """Let threads allocate from one heap: of heaps of their own glibc keeps what others freed.

    Slabs go from thread to thread, so that would be some of them for every thread.
    """
    _mallopt(_M_ARENA_MAX, 1)


def keep_freed(n_bytes: int) -> None:
    """Keep so much of what is freed for the next slab: what the system gives anew, it zeroes."""
    _mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    _mallopt(_M_TRIM_THRESHOLD, n_bytes)


def give_back_freed() -> None:
    """Give what is freed back to the system, but for small things.

    Else glibc raises the size from which it does so to that of the largest buffer that was freed,
    up to 32 MB, and each of many threads keeps such buffers in a heap of its own.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGE)
    # Else the end of the heap goes back and forth with every small buffer.
    _mallopt(_M_TRIM_THRESHOLD, 32 * _LARGE)


def _mallopt(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
