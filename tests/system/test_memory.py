"""Freed memory is kept: the same operation, done again, needs no new page of memory from the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from diffuse.system.device import Device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sum((torch.ones(1 << 24) * factor).sum() for factor in range(2))  # 67 MB at a time: never kept by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

device = Device("cpu", keep_memory=sys.argv[1] == "true")
faults(), faults()
print(faults())
"""


def page_faults(keep_memory: bool, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(keep_memory).lower()],
        env={"OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_unless_one_says_otherwise():
    pages = (1 << 26) // 4096
    assert page_faults(keep_memory=True) < pages / 10
    assert page_faults(keep_memory=False) > pages / 2
    assert page_faults(keep_memory=True, DIFFUSE_KEEP_MEMORY="0") > pages / 2
