"""What a process frees is kept for it: counted in pages that the system had to fill, in a process of its own."""

import subprocess
import sys

import pytest

from llmt.system.allocator import can_reuse_memory

PROBE = """
import resource, torch
from llmt.system.allocator import reuse_memory, return_memory
from llmt.system.memory import process_memory

def pages(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(64, 1024, 256)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual, least = pages(10), process_memory()
reuse_memory()
pages(100)  # until the blocks that glibc does not find again are many enough
kept, held = pages(10), process_memory() - least
return_memory()
returned = process_memory() - least
torch.ones(256, 1024, 256)
print(usual, kept, held, returned, process_memory() - least)
"""

SIZE = 64 * 2**20


@pytest.mark.skipif(not can_reuse_memory(), reason="the C library is not glibc")
def test_memory_is_filled_once_and_can_be_given_back() -> None:
    """Blocks of 64 MiB are filled anew each time as glibc does it, and not once it may keep them; afterwards what was
    kept is given back, and so is a block that is freed.
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120)
    usual, kept, held, returned, later = map(int, done.stdout.split())
    assert kept < 0.1 * usual
    assert held > 0.9 * SIZE
    assert returned < 0.1 * SIZE
    assert later < 0.1 * SIZE


GROWN = """
import torch
from llmt.system.allocator import KeptMemory, reuse_memory
from llmt.system.memory import process_memory

reuse_memory()
kept = KeptMemory()
first = process_memory()
looked = [kept.after_step(first), kept.after_step(first)]
blocks = [torch.ones(64, 1024, 256) for _ in range(8)]
del blocks
held = process_memory()
looked += [kept.after_step(held), kept.after_step(process_memory()), kept.after_step(process_memory())]
print(first, held, process_memory(), *map(int, looked))
"""


@pytest.mark.skipif(not can_reuse_memory(), reason="the C library is not glibc")
def test_what_was_kept_without_need_is_given_back() -> None:
    """After the first step all is given back, and again where half a gigabyte more is held than after the second."""
    done = subprocess.run([sys.executable, "-c", GROWN], capture_output=True, text=True, check=True, timeout=120)
    first, held, later, *looked = map(int, done.stdout.split())
    assert held - first > 7 * SIZE
    assert later - first < SIZE
    assert looked == [1, 0, 1, 0, 0]
