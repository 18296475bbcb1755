"""What this process's allocators and its garbage collector do, and when."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of handing each back to the kernel, which clears it page by page.

    A training step allocates and frees every activation: EfficientNet-Lite0 at 160 px trains a third faster.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def collect_rarely() -> None:
    """Have this whole process, a command's, look for garbage cycles rarely, and not once more when it ends.

    The modules of torch and timm are a million objects: looked at again and again they take a second to import, and
    another to go.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside, nothing is collected: what imports make stays."""
    were_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if were_on:
            gc.enable()


def keep_what_lives() -> None:
    """Let later garbage collections pass over all that lives now: with torch and Ray each would take 0.2 s.

    What of it becomes garbage later is found by the next call.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def release_freed_memory() -> None:
    """Hand back to the kernel what the allocators hold, when much of it will not be needed again."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
