"""Steps of a process -> seconds of each, the share of the cores that others took meanwhile, and the peak memory."""

import os
import time
from pathlib import Path
from typing import Any

STAT = Path("/proc/stat")


class Clock:
    """Notes the end of each step.

    Args:
        device: Kind of device; what it still computes at the end of a step is waited for.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._last = self._moment()
        self.steps: list[tuple[float, float]] = []

    def tick(self) -> None:
        """A step has ended."""
        before, self._last = self._last, self._moment()
        seconds, own, busy = (now - then for now, then in zip(self._last, before, strict=True))
        others = max(busy - own, 0.0) / (seconds * (os.cpu_count() or 1)) if seconds else 0.0
        self.steps.append((seconds, others))

    def _moment(self) -> tuple[float, float, float]:
        """Wall seconds, those of this process's cores, and those of all processes."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        times = os.times()
        return time.perf_counter(), sum(times[:4]), _busy_seconds()

    def peak_memory(self) -> int:
        """Bytes: of the GPU where that computes, else of this process."""
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        status = Path("/proc/self/status")
        if status.is_file():
            return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {"steps": self.steps, "peak_memory_bytes": self.peak_memory()}


def _busy_seconds() -> float:
    """Of all cores, since the machine started; 0 where nobody tells."""
    if not STAT.is_file():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
