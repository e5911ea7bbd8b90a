"""How much memory and how many cores there are, and how much of them is used: the only door of psutil."""

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

LOOKS = 3
LOOK_SECONDS = 0.1
"""How often, and for how long, other processes are looked at."""


@dataclass(frozen=True)
class MemoryUsage:
    """Memory in bytes; None where this system does not tell.

    Attributes:
        total: Main memory of the machine.
        available: What can be had without swapping.
        percentage: Share of the total in use, 0 to 100.
        process: Resident memory of this process.
        cuda_allocated: Held by tensors on the current CUDA device; 0 without CUDA.
        cuda_reserved: Held by torch's allocator there.
    """

    total: int | None
    available: int | None
    percentage: float | None
    process: int
    cuda_allocated: int = 0
    cuda_reserved: int = 0


def get_memory_usage() -> MemoryUsage:
    """Memory now, from psutil, else from the `resource` module and the system's own counters."""
    psutil = _psutil()
    if psutil is not None:
        whole = psutil.virtual_memory()
        total, available, percentage = whole.total, whole.available, whole.percent
        limit = _container_limit()
        if limit is not None and limit < total:
            total, available = limit, min(available, max(limit - process_memory(), 0))
    else:
        total, available = _system_memory()
        percentage = 100.0 * (1 - available / total) if total and available is not None else None
    allocated, reserved = _cuda_memory()
    return MemoryUsage(total, available, percentage, process_memory(), allocated, reserved)


def process_memory() -> int:
    """Resident bytes of this process; its peak where only that is known."""
    psutil = _psutil()
    if psutil is not None:
        return int(psutil.Process().memory_info().rss)
    return peak_memory()


def reset_peak() -> None:
    """Let `peak_memory` begin anew, where the system can: Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """The most resident bytes of this process so far, or since `reset_peak`; 0 where that is not known."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def physical_cores() -> int:
    """Physical cores that this process may use; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    psutil = _psutil()
    cores = psutil.cpu_count(logical=False) if psutil is not None else None
    return max(min(allowed, cores or allowed), 1)


def busy_cores() -> float:
    """Cores that other processes keep busy, of those that this one may use; 0 where that is not known.

    The least of three short looks: what ends within a third of a second does not count.
    """
    psutil = _psutil()
    if psutil is None:
        return 0.0
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    found: list[float] = []
    for _ in range(LOOKS):
        own, began = sum(os.times()[:4]), time.monotonic()
        shares = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
        busy = sum(share for core, share in enumerate(shares) if allowed is None or core in allowed) / 100
        found.append(max(busy - (sum(os.times()[:4]) - own) / (time.monotonic() - began), 0.0))
    return min(found)


def _psutil() -> ModuleType | None:
    """psutil, or None where it cannot be imported; everything here has another way then."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _container_limit() -> int | None:
    """The memory that a Linux control group allows, in bytes; None without a limit."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _system_memory() -> tuple[int | None, int | None]:
    """Total and available bytes without psutil."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None, None
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in names else None
    return os.sysconf("SC_PHYS_PAGES") * page, free


def _cuda_memory() -> tuple[int, int]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
