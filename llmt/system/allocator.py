"""What a step frees -> the next step.

glibc gives large blocks back to the system as soon as they are freed, and the system fills them with zeros, page by
page, when they are asked for again. A training step on a CPU frees and asks for the same gigabyte each time: about a
tenth of its time went there (`tests/bench/levers.py`).

glibc before 2.38 does not always find a freed block of the same size again, since it looks for room to align it: a
process that asks for one size alone may come to hold eight of them, and no more. Training steps, whose blocks have many
sizes, hold 2 % more.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Numbers of settings in glibc's malloc.h."""

USUAL = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 65536}
"""Where glibc's own thresholds end in a process that frees large blocks: once set, they move no more by themselves."""


def can_reuse_memory() -> bool:
    """This process allocates through glibc, which can be told."""
    return platform.libc_ver()[0] == "glibc" and hasattr(ctypes.CDLL(None), "mallopt")


def reuse_memory() -> None:
    """Keep what this process frees from now on for what it asks for next. Only where `can_reuse_memory` says so.

    What it has freed before is given back: where weights were drawn and rounded, the holes are too small for a step.
    """
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # as a size this is the largest


def return_memory() -> None:
    """Let glibc give back what is freed, from now on, and what it has kept."""
    libc = ctypes.CDLL(None)
    for setting, value in USUAL.items():
        libc.mallopt(setting, value)
    libc.malloc_trim(0)


GROWTH = 1.15
"""How much more a process may hold after a step than after the second before memory is given back."""


class KeptMemory:
    """Gives back what a process holds and does not need, where it keeps what it frees.

    The first step leaves what its compiler needed, and moments between the holes of its activations: steps that follow
    would fill both. Steps of unlike shapes, such as those that predict another number of tokens each, leave holes that
    later blocks do not fit into. So what is held after the second step is compared with what is held after each later
    one; once it has grown, the holes are given back, and the next step is the second one again.
    """

    def __init__(self) -> None:
        self._usual: int | None = 0  # more than nothing is held after the first step, and given back

    def after_step(self, held: int) -> bool:
        """Look at the bytes that the process holds after a step; whether some were given back."""
        if self._usual is None:
            self._usual = held
        if held <= GROWTH * self._usual:
            return False
        ctypes.CDLL(None).malloc_trim(0)
        self._usual = None
        return True
