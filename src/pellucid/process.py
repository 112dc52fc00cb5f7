"""Settings of this process that decide how fast it is. The entry point makes them; a program of one's own may."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP = 1 << 30  # bytes of freed memory to keep
MAPPED_FROM = 1 << 25  # bytes, glibc's greatest


def settle() -> None:
    """Threads that sleep, not spin, and freed memory that is kept. Call it before torch is imported.

    A spinning OpenMP pool beside any other process was measured 11 to 26 times slower than a sleeping one. And glibc
    hands freed memory back to the system at once, to ask for it anew at the next step: page faults were a tenth of
    PGD's time on Pool and Ross, and up to a third on Small. Threads that are set in the environment stay as they are.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_M_TRIM_THRESHOLD, KEEP)
            libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
