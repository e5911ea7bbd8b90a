"""What a process frees is kept for it: counted in pages that the system had to fill, in a process of its own."""

import subprocess
import sys

import pytest

from llmt.system.allocator import can_reuse_memory

PROBE = """
import resource, sys, torch
from llmt.system.allocator import reuse_memory, return_memory
from llmt.system.memory import process_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64, 1024, 256)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = pages()
reuse_memory()
pages()
kept, before = pages(), process_memory()
return_memory()
print(usual, kept, before - process_memory(), pages())
"""

SIZE = 64 * 2**20


@pytest.mark.skipif(not can_reuse_memory(), reason="the C library is not glibc")
def test_memory_is_filled_once_and_can_be_given_back() -> None:
    """Ten blocks of 64 MiB: each is filled anew as glibc does it, none once it may keep them, each again afterwards."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120)
    usual, kept, returned, again = map(int, done.stdout.split())
    assert kept < 0.1 * usual
    assert returned > 0.9 * SIZE
    assert again > 0.9 * usual
