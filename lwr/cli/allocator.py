"""Let the process keep the memory that it frees, so that each block of a model need not ask the system for it again.

By default, glibc gives large pieces back when they are freed; the next tensor then gets pages that the system has to
clear first. `mallopt` and the variables are described in https://man7.org/linux/man-pages/man3/mallopt.3.html.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of malloc.h
KEPT = 512 * 2**20  # bytes of free memory from which on it is given back
LARGEST = 32 * 2**20  # bytes of the largest pieces that are kept; glibc allows no more
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""What a user may set instead."""


def keep_freed_memory() -> bool:
    """Keep up to 512 MiB of freed memory; return whether that was set.

    It is not set without glibc, nor if a user set one of the variables of glibc.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
