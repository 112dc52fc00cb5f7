"""Settings of this process that decide how fast it is. The entry point makes them; a program of one's own may."""

import ctypes
import os
import sys

# glibc's names in the environment, its numbers (malloc.h), and bytes: of freed memory to keep; its greatest threshold.
_MEMORY = (("MALLOC_TRIM_THRESHOLD_", -1, 1 << 30), ("MALLOC_MMAP_THRESHOLD_", -3, 1 << 25))


def settle() -> None:
    """Threads that hardly spin, and freed memory that is kept. Call it before torch is imported.

    A spinning OpenMP pool beside any other process was measured 11 to 26 times slower than a sleeping one; one that
    always sleeps made the ensemble on 200 MNIST images take 89 s where some thousand turns before it sleeps, a
    microsecond or two, made it 58, and cost a tenth beside a busy process. And glibc
    hands freed memory back to the system at once, to ask for it anew at the next step: page faults were a tenth of
    PGD's time on Pool and Ross, and up to a third on Small. What is set in the environment stays as it is.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            for name, number, value in _MEMORY:
                if name not in os.environ:
                    libc.mallopt(number, value)
