"""Freed memory is kept: a large tensor comes from the heap, not from a mapping that is handed back when it is freed."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, torch
from diffuse.system.device import Device

class Info(ctypes.Structure):  # mallinfo2 of glibc's malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
for keep_memory in (False, True):
    device = Device("cpu", keep_memory=keep_memory)
    before = mallinfo2().hblkhd
    tensor = torch.ones(1 << 24)  # 67 MB: more than glibc ever keeps by itself
    mapped = mallinfo2().hblkhd - before
    heap = mallinfo2().arena
    del tensor
    print(mapped, heap - mallinfo2().arena)
"""
BYTES = 4 << 24


def mapped_and_returned(**environment: str) -> list[list[int]]:
    """Bytes of a large tensor that were mapped for it alone, and bytes that the heap lost when it was freed.

    First without and then with the key device.keep_memory.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def has_mallinfo2() -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 33)


@pytest.mark.skipif(not has_mallinfo2(), reason="asks glibc 2.33 or newer what it did")
def test_freed_memory_is_kept_unless_one_says_otherwise():
    without, kept = mapped_and_returned()
    assert without[0] >= BYTES
    assert kept == [0, 0]
    assert all(mapped >= BYTES for mapped, _ in mapped_and_returned(DIFFUSE_KEEP_MEMORY="0"))
