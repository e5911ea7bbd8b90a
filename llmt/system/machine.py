"""What this machine has: devices that compute, number formats that are fast, cores, memory, a compiler."""

import os
import platform
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from llmt.errors import DeviceError, MissingPackageError, UsageError
from llmt.system.memory import busy_cores, get_memory_usage, physical_cores
from llmt.system.products import as_before, can_use_onednn, use_onednn

DEVICE_ORDER = ("cuda", "mps", "cpu")
FAST_BF16 = 1.3
"""bf16 products must be this many times faster than fp32 ones to be chosen."""


PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""What keeps torch, MKL and oneDNN from choosing their code by the processor."""


@dataclass(frozen=True)
class DeviceInfo:
    """One kind of device.

    Attributes:
        kind: `cuda`, `mps` or `cpu`.
        name: What the vendor calls it.
        present: It is there.
        problem: Why it cannot be used; empty when a small computation on it came out right.
        memory: Its memory in bytes, where that is known; of CUDA, what is free.
    """

    kind: str
    name: str
    present: bool
    problem: str = ""
    memory: int | None = None

    @property
    def usable(self) -> bool:
        """It is there and computes."""
        return self.present and not self.problem


@dataclass(frozen=True)
class Machine:
    """What was found out about this machine.

    Attributes:
        system: Operating system and architecture.
        python: Version of the running Python.
        torch: Version of torch.
        devices: Every kind of device, best first.
        cores: Physical cores that this process may use.
        threads_from_environment: Value of OMP_NUM_THREADS, if it is set.
        memory: Main memory in bytes, where that is known.
        available: What of it is free, in bytes.
        compiler: Path of a C++ compiler; None without one.
        processes: Processes that a launcher started on this machine; None where none did.
        world_size: The same over all machines.
    """

    system: str
    python: str
    torch: str
    devices: tuple[DeviceInfo, ...]
    cores: int
    threads_from_environment: int | None
    memory: int | None
    available: int | None
    compiler: str | None
    processes: int | None = None
    world_size: int | None = None

    def device(self, kind: str) -> DeviceInfo:
        """The device of one kind."""
        return next(d for d in self.devices if d.kind == kind)


@dataclass(frozen=True)
class Speed:
    """Measured speed of matrix products on one device.

    Attributes:
        fp32: Floating-point operations per second in fp32, as torch multiplies by itself.
        bf16: The same in bf16; 0 where it is not supported.
        busy_cores: Cores that other processes kept busy meanwhile, where the CPU computes.
        onednn: The same in fp32 by oneDNN; 0 where that is not to be used.
    """

    fp32: float
    bf16: float
    busy_cores: float = 0.0
    onednn: float = 0.0

    @property
    def bf16_gain(self) -> float:
        """How many times faster bf16 is than the faster library's fp32."""
        return self.bf16 / max(self.fp32, self.onednn)


def use_portable_numerics() -> None:
    """Let this process, and those that it starts, compute with the instructions that all processors of a kind have.

    Raises:
        UsageError: torch is loaded already, and has chosen otherwise.
    """
    if "torch" in sys.modules and any(os.environ.get(name) != value for name, value in PORTABLE.items()):
        raise UsageError(
            "portable_numerics: torch has chosen its instructions already",
            f"before Python starts: export {' '.join(f'{name}={value}' for name, value in PORTABLE.items())}",
        )
    os.environ.update(PORTABLE)


def inspect_machine() -> Machine:
    """Look at the machine. Each device that is there does one small computation with a gradient.

    Raises:
        MissingPackageError: torch cannot be imported.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("torch", str(error)) from None
    memory = get_memory_usage()
    world_size = _number("WORLD_SIZE")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        devices=tuple(_inspect_device(kind) for kind in DEVICE_ORDER),
        cores=physical_cores(),
        threads_from_environment=_number("OMP_NUM_THREADS"),
        memory=memory.total,
        available=memory.available,
        compiler=find_compiler(),
        processes=_number("LOCAL_WORLD_SIZE") or world_size,
        world_size=world_size,
    )


def _number(variable: str) -> int | None:
    """An environment variable that is a whole number above zero; None for anything else."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def find_compiler() -> str | None:
    """Path of the C++ compiler that torch.compile would use on a CPU; None without one."""
    named = os.environ.get("CXX")
    candidates = ([named] if named else []) + (["cl"] if sys.platform == "win32" else ["g++", "clang++"])
    return next((path for path in map(shutil.which, candidates) if path), None)


def try_compile(kind: str) -> str:
    """Empty when torch.compile makes a small function work on a device, else what went wrong."""
    import torch

    try:
        doubled = torch.compile(lambda x: (x * 2).sin(), dynamic=False)(torch.ones(8, device=kind))
    except (RuntimeError, OSError, ImportError) as error:
        return f"torch.compile failed: {str(error).strip().splitlines()[0]}"
    return "" if bool(doubled.isfinite().all()) else "torch.compile gave a wrong result"


def require_device(machine: Machine, kind: str) -> DeviceInfo:
    """The named device.

    Raises:
        DeviceError: It is absent, or it failed its computation; never replaced by another.
    """
    device = machine.device(kind)
    if not device.usable:
        usable = ", ".join(d.kind for d in machine.devices if d.usable)
        raise DeviceError(f"--device {kind}: {device.problem}", f"usable here: {usable}; or --device auto")
    return device


def _inspect_device(kind: str) -> DeviceInfo:
    import torch

    if kind == "cuda":
        if not torch.cuda.is_available():
            built = torch.version.cuda or torch.version.hip
            why = "no CUDA device found" if built else "torch is built without CUDA"
            return DeviceInfo(kind, "", False, why)
        properties = torch.cuda.get_device_properties(0)
        return DeviceInfo(kind, properties.name, True, _try_device(kind), torch.cuda.mem_get_info()[0])
    if kind == "mps":
        if not torch.backends.mps.is_available():
            why = "no Metal device found" if torch.backends.mps.is_built() else "torch is built without Metal"
            return DeviceInfo(kind, "", False, why)
        return DeviceInfo(kind, "Apple GPU", True, _try_device(kind), get_memory_usage().total)
    return DeviceInfo(kind, _cpu_name(), True, _try_device(kind), get_memory_usage().total)


def _try_device(kind: str) -> str:
    """Empty when a product with a gradient comes out right, else what went wrong."""
    import torch

    try:
        x = torch.arange(6.0, device=kind).reshape(2, 3).requires_grad_(True)
        (x @ x.T).sum().backward()  # type: ignore[no-untyped-call]
        expected = 2 * x.detach().sum(0).expand(2, 3)
        right = x.grad is not None and bool(torch.allclose(x.grad, expected))
    except (RuntimeError, NotImplementedError) as error:
        return f"failed its first computation: {str(error).splitlines()[0]}"
    return "" if right else "its first computation came out wrong"


def _cpu_name() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(("model name", "Hardware")):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


EMULATED = 8e9
"""Floating-point operations a second below which a processor does not compute by itself what it is asked for."""


@lru_cache
def measure_speed(kind: str, threads: int) -> Speed:
    """Speed of matrix products on a device, fp32 and bf16, in less than a second on a CPU.

    Args:
        kind: Device kind.
        threads: CPU threads to measure with; torch keeps this number.
    """
    import torch

    fp32 = bf16 = onednn = 0.0
    both = kind == "cpu" and can_use_onednn()
    busy = busy_cores() if kind == "cpu" else 0.0
    # Where other processes hold the cores, threads wait for each other at every product: one by itself may be faster.
    for number in dict.fromkeys((1, threads) if kind == "cpu" else (threads,)):
        torch.set_num_threads(number)
        fp32 = max(fp32, _product_speed(kind, torch.float32))
        with suppress(RuntimeError, TypeError):  # older GPUs have no bf16
            bf16 = max(bf16, _product_speed(kind, torch.bfloat16))
        if both:
            with as_before():
                use_onednn()
                onednn = max(onednn, _product_speed(kind, torch.float32))
    return Speed(fp32, bf16, busy, onednn)


def _product_speed(kind: str, dtype: object) -> float:
    if kind != "cpu":
        return _square_speed(4096, kind, dtype)  # large enough that the answer is not all latency
    small = _square_speed(256, kind, dtype)
    # Products that are emulated would take seconds, and are known to be slow already.
    return small if small < EMULATED else _square_speed(768, kind, dtype)


def _square_speed(size: int, kind: str, dtype: object) -> float:
    """Floating-point operations a second of the product of two square matrices."""
    import torch

    times = []
    left = torch.ones(size, size, dtype=dtype, device=kind)  # type: ignore[call-overload]
    for _ in range(6):
        started = time.perf_counter()
        float((left @ left)[0, 0])  # reading one value waits for the device
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)  # the best: another process may hold the cores meanwhile
