"""machine -> checks that compute something."""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from llmt.errors import MissingPackageError
from llmt.system.machine import DeviceInfo, Machine, find_compiler, inspect_machine, measure_speed
from llmt.system.memory import get_memory_usage
from llmt.units import format_size

Status = Literal["ok", "warn", "fail"]

PACKAGES = {
    "torch": "2.10", "typer": "0.29", "rich": "13", "safetensors": "0.8", "transformers": "5.3", "datasets": "4",
    "accelerate": "1", "peft": "0.17", "pydantic": "2.11", "psutil": "5.9",
}  # fmt: skip
"""Every package that llmt needs, and the oldest version it works with."""

MIN_FREE_DISK = 2_000_000_000
MIN_FREE_MEMORY = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What.
        status: `ok`; `warn` when something would be better otherwise; `fail` when a command will not work.
        detail: What was found, and what to do.
    """

    name: str
    status: Status
    detail: str


def diagnose(device: str = "auto", directory: Path = Path()) -> Iterator[Check]:
    """Check packages, devices, number formats, memory, disk and compiler, one after the other.

    Args:
        device: Check this kind of device only; a named one that is absent fails.
        directory: Its disk is checked.
    """
    yield from (_check_package(name, floor) for name, floor in PACKAGES.items())
    yield from _check_devices(device)
    yield _check_memory()
    yield _check_disk(directory)
    yield _check_compiler()


def _check_package(name: str, floor: str) -> Check:
    try:
        importlib.import_module(name)
        version = metadata.version(name)
    except ImportError as error:
        return Check(name, "fail", f"cannot be imported: {error}; python -m pip install {name}")
    if _numbers(version) < _numbers(floor):
        return Check(name, "fail", f"{version} is older than {floor}; python -m pip install --upgrade {name}")
    return Check(name, "ok", version)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:3])


def _check_devices(device: str) -> Iterator[Check]:
    try:
        machine = inspect_machine()
    except MissingPackageError as error:
        yield Check("devices", "fail", f"{error.message}; {error.hint}")
        return
    yield Check("system", "ok", f"{machine.system}, Python {machine.python}, {machine.cores} physical cores")
    for info in machine.devices:
        if device in ("auto", info.kind):
            yield from _check_device(info, machine, named=device != "auto")


def _check_device(info: DeviceInfo, machine: Machine, *, named: bool) -> Iterator[Check]:
    if not info.present:
        yield Check(info.kind, "fail" if named else "ok", f"not here: {info.problem}")
        return
    if info.problem:
        yield Check(info.kind, "fail", f"{info.name}: {info.problem}")
        return
    memory = f", {format_size(info.memory)}" if info.memory else ""
    yield Check(info.kind, "ok", f"{info.name}{memory}; forward and backward came out right")
    threads = machine.threads_from_environment or machine.cores
    speed = measure_speed(info.kind, threads)
    other = f" ({speed.onednn / 1e9:.0f} by oneDNN)" if speed.onednn else ""
    detail = f"fp32 {speed.fp32 / 1e9:.0f} GFLOP/s{other}, bf16 {speed.bf16 / 1e9:.0f} GFLOP/s ({speed.bf16_gain:.2g}x)"
    yield Check(f"{info.kind} speed", "ok", detail)


def _check_memory() -> Check:
    memory = get_memory_usage()
    if memory.total is None or memory.available is None:
        return Check("memory", "warn", "this system does not tell; python -m pip install psutil")
    status: Status = "ok" if memory.available >= MIN_FREE_MEMORY else "warn"
    return Check("memory", status, f"{format_size(memory.available)} free of {format_size(memory.total)}")


def _check_disk(directory: Path) -> Check:
    free = shutil.disk_usage(directory).free
    return Check(
        "disk", "ok" if free >= MIN_FREE_DISK else "warn", f"{format_size(free)} free in {directory.resolve()}"
    )


def _check_compiler() -> Check:
    compiler = find_compiler()
    if compiler is None:
        return Check("compiler", "warn", "no C++ compiler: training works, and torch.compile could make it faster")
    return Check("compiler", "ok", compiler)
