"""Keep freed memory: the memory of one tensor serves the next one, instead of going back to the system."""

import ctypes
import os

# mallopt's names for its parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# In bytes: the largest value an int holds, and the largest that older versions of glibc accept.
THRESHOLDS = (2**31 - 1, 2**25)


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next allocation. Returns whether it does.

    glibc gives each large block back to the system when it is freed, and every page of the next one is a page fault:
    six pointwise operations on 67 MB tensors took 143 ms with 65,540 faults, and 14 ms without any. The price is that
    the process keeps the most memory that it ever needed. Other C libraries are not changed, and neither is glibc if
    the environment variable DIFFUSE_KEEP_MEMORY is 0. Results are the same to the last bit.
    """
    library = ctypes.CDLL(None)
    if os.environ.get("DIFFUSE_KEEP_MEMORY") == "0" or not hasattr(library, "gnu_get_libc_version"):
        return False
    parameters = (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)
    return all(any(library.mallopt(parameter, threshold) for threshold in THRESHOLDS) for parameter in parameters)
