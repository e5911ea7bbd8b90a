"""What every benchmark shares: one JSON line a result, and processes measured from outside."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def report(bench: str, **values: Any) -> None:
    """Print one result."""
    print(json.dumps({"bench": bench, **values}), flush=True)


def run_process(command: Sequence[str], *, timeout: float, cwd: Path | None = None) -> tuple[float, int, str]:
    """Run a command to its end.

    Returns:
        Wall seconds, peak resident bytes of the process, and its standard output.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=cwd, text=True)
    timer = time.monotonic() + timeout
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) != 0 or time.monotonic() > timer:
        sys.exit(f"{' '.join(command)}: exit {os.waitstatus_to_exitcode(status)} after {seconds:.0f} s")
    factor = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * factor, shown


def paired_medians(first: Sequence[str], second: Sequence[str], *, runs: int, timeout: float) -> tuple[float, float]:
    """Median wall seconds of two commands, run in turn after one warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(runs + 1):
        for command, found in zip((first, second), times, strict=True):
            seconds, _, _ = run_process(command, timeout=timeout)
            if number:
                found.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])
