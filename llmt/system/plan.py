"""configuration and machine -> what will be done, each line with its reason."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llmt.config.run import TrainConfig
from llmt.errors import DeviceError, OutOfMemoryError
from llmt.system.allocator import can_reuse_memory
from llmt.system.estimate import CUDA_BUILD_BYTES, Workload, checkpoint_bytes, training_bytes
from llmt.system.machine import FAST_BF16, DeviceInfo, Machine, Speed, require_device
from llmt.units import format_duration, format_size

BUSY_ROUNDING = 0.25
"""Added before rounding down: a core counts as taken where others use three quarters of it."""

MEMORY_SHARE = 0.85
"""Share of the free memory that a run may plan to use."""

COMPILE_SECONDS = 32.0
"""Typical cost of compiling the blocks for training on two cores, with an empty cache."""

_COMPILING = format_duration(COMPILE_SECONDS)

COMPILE_GAIN = 0.18
"""Share of a step's time that compiling was measured to save on a CPU with a small model."""

COMPILE_MARGIN = 2.0
"""Compiling must save this many times what it costs: both are estimates."""

ACHIEVED = 0.65
"""Share of the measured product speed that a training step reaches without compiling."""


@dataclass(frozen=True)
class PlanLine:
    """One decision.

    Attributes:
        name: What was decided.
        value: The outcome.
        reason: Why, in one sentence.
    """

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class RunPlan:
    """What a training run will do on this machine.

    Attributes:
        device: Kind of device.
        precision: Number format of the computation.
        fp32_products: The library that multiplies fp32 matrices: `onednn`, or `torch` for torch's choice.
        threads: CPU threads of one operation.
        micro_batch: Sequences at once.
        accumulation: Passes summed into one step.
        num_workers: Background threads that read ahead.
        pin_memory: Batches are page-locked.
        reuse_memory: What a step frees is kept for the next one.
        compile: The blocks are compiled.
        distributed_backend: How processes would talk.
        total_steps: Steps until the learning rate reaches its floor.
        estimated_bytes: Peak memory by arithmetic.
        lines: Every decision with its reason.
    """

    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    fp32_products: Literal["onednn", "torch"]
    threads: int
    micro_batch: int
    accumulation: int
    num_workers: int
    pin_memory: bool
    reuse_memory: bool
    compile: bool
    distributed_backend: str
    total_steps: int
    estimated_bytes: int
    lines: tuple[PlanLine, ...]

    def values(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        return asdict(self)

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> "RunPlan":
        """The plan whose `values` these are."""
        lines = tuple(line if isinstance(line, PlanLine) else PlanLine(**line) for line in values["lines"])
        return cls(**{**values, "lines": lines})

    def without_onednn(self) -> "RunPlan":
        """The plan on a processor that is not to multiply by oneDNN, though the run began on one that did."""
        line = PlanLine("fp32_products", "torch", "the run began with oneDNN, which is not for this processor")
        return replace(
            self, fp32_products="torch", lines=tuple(line if one.name == line.name else one for one in self.lines)
        )

    def with_micro_batch(self, micro: int, accumulation: int, reason: str) -> "RunPlan":
        """The plan with another micro-batch for the same sequences of a step."""
        new = {
            "micro_batch": PlanLine("micro_batch", micro, reason),
            "accumulation": PlanLine("accumulation", accumulation, "keeps the sequences of a step"),
        }
        lines = tuple(new.get(line.name, line) for line in self.lines)
        return replace(self, micro_batch=micro, accumulation=accumulation, lines=lines)


def choose_device(asked: str, machine: Machine) -> tuple[DeviceInfo, str]:
    """The device to use and why: the named one, or the first of CUDA, MPS and CPU that computes.

    Raises:
        DeviceError: The named device is absent or broken.
    """
    if asked != "auto":
        return require_device(machine, asked), "asked for"
    passed: list[str] = []
    for device in machine.devices:
        if device.usable:
            return device, "; ".join([*passed, f"{device.name or device.kind} computes"])
        passed.append(f"{device.kind}: {device.problem}")
    raise DeviceError("no device computes: " + "; ".join(passed), "llmt doctor")


def choose_threads(asked: int | None, machine: Machine, busy_cores: float = 0.0) -> PlanLine:
    """CPU threads: as asked, as OMP_NUM_THREADS says, else one for each physical core that others leave free.

    The threads of a product wait for the last one at its end: one that shares its core with another process slows all.
    """
    if asked is not None:
        return PlanLine("threads", asked, "asked for")
    if machine.threads_from_environment is not None:
        return PlanLine("threads", machine.threads_from_environment, "OMP_NUM_THREADS says so")
    reason = f"one for each of {machine.cores} physical cores"
    taken = min(math.floor(busy_cores + BUSY_ROUNDING), machine.cores - 1)
    if taken < 1:
        return PlanLine("threads", machine.cores, reason)
    return PlanLine("threads", machine.cores - taken, f"{reason}, but for {taken} that other processes keep busy")


def choose_precision(asked: str, device: str, speed: Speed) -> PlanLine:
    """The number format: as asked, else bf16 where its products were measured to be faster.

    Raises:
        DeviceError: bf16 was asked for and the device has no bf16 products.
    """
    if asked == "bf16" and not speed.bf16:
        raise DeviceError(f"training.precision bf16: {device} has no bf16 products", "use --precision auto")
    if asked != "auto":
        return PlanLine("precision", asked, "asked for")
    if not speed.bf16:
        return PlanLine("precision", "fp32", f"{device} has no bf16 products")
    gain = f"bf16 products measured {speed.bf16_gain:.2g}x as fast as fp32"
    if speed.bf16_gain >= FAST_BF16:
        return PlanLine("precision", "bf16", f"{gain}; weights and moments stay in fp32")
    return PlanLine("precision", "fp32", gain)


def choose_products(config: TrainConfig, device: str, precision: str, speed: Speed) -> PlanLine:
    """The library for fp32 products: oneDNN in fp32 on the CPU, where it was measured because it may be used.

    Not by which was faster just now: two runs alike compute alike.
    """
    if precision != "fp32":
        return PlanLine("fp32_products", "torch", f"the run computes in {precision}")
    if device != "cpu":
        return PlanLine("fp32_products", "torch", f"{device} has its own")
    if config.portable_numerics:
        return PlanLine("fp32_products", "torch", "portable_numerics")
    if not speed.onednn:
        return PlanLine("fp32_products", "torch", "oneDNN is for AMD's processors with bf16, where it is exact")
    gain = f"oneDNN's measured {speed.onednn / speed.fp32:.2g}x as fast as MKL's on this AMD processor"
    return PlanLine("fp32_products", "onednn", f"{gain}, and as exact")


def plan_run(
    config: TrainConfig,
    machine: Machine,
    device: DeviceInfo,
    why: str,
    speed: Speed,
    work: Workload,
    total_steps: int,
    sequences: int,
) -> RunPlan:
    """Decide everything that the configuration leaves open.

    Args:
        config: What was asked.
        machine: What there is.
        device: The chosen device.
        why: Why that one.
        speed: Its measured speed.
        work: Size of one pass with the micro-batch that was asked.
        total_steps: Steps of the whole run.
        sequences: Of one step, over all processes.

    Raises:
        DeviceError: Something was asked for that this device does not have.
        OutOfMemoryError: Not even one sequence fits.
    """
    threads = choose_threads(config.threads, machine, speed.busy_cores)
    precision = choose_precision(config.training.precision, device.kind, speed)
    products = choose_products(config, device.kind, precision.value, speed)
    batch, accumulation, needed = _fit(config, device, machine, work, precision.value)
    workers = _workers(config, device)
    pinned = _pinned(config, device)
    reused = _reused(device)
    compiled = _compile(config, machine, device, work, speed, precision.value, total_steps * accumulation.value)
    backend = choose_backend(config, device, machine.world_size)
    lines = (
        PlanLine("device", device.kind, why),
        precision,
        products,
        threads,
        batch,
        accumulation,
        workers,
        pinned,
        reused,
        compiled,
        backend,
        memory_line(needed),
        PlanLine("steps", total_steps, _step_reason(config, work, sequences)),
    )
    return RunPlan(
        device=device.kind,
        precision=precision.value,
        fp32_products=products.value,
        threads=threads.value,
        micro_batch=batch.value,
        accumulation=accumulation.value,
        num_workers=workers.value,
        pin_memory=pinned.value,
        reuse_memory=reused.value,
        compile=compiled.value,
        distributed_backend=backend.value,
        total_steps=total_steps,
        estimated_bytes=needed,
        lines=lines,
    )


def _fit(
    config: TrainConfig, device: DeviceInfo, machine: Machine, work: Workload, precision: str
) -> tuple[PlanLine, PlanLine, int]:
    """The largest micro-batch that fits, the global batch unchanged."""
    asked, passes = config.training.per_device_train_batch_size, config.training.gradient_accumulation_steps
    sharing = 1 if device.kind == "cuda" else machine.processes or config.training.num_processes
    room = device.memory if device.kind == "cuda" else machine.available
    limit = None if room is None else round(room * MEMORY_SHARE / sharing)
    shared = f" for each of {sharing} processes" if sharing > 1 else ""
    for micro in _divisors(asked):
        several = passes * asked // micro > 1
        each = replace(work, batch_size=micro)
        needed = needed_bytes(config, device, machine, each, precision, accumulates=several)
        if limit is None or needed <= limit:
            break
    else:
        raise OutOfMemoryError(
            f"one sequence needs about {format_size(needed)}, and {format_size(limit or 0)} may be used{shared}",
            "llmt train --gradient-checkpointing, a smaller model, or a shorter --block-size",
        )
    accumulation = passes * asked // micro
    if micro == asked:
        return PlanLine("micro_batch", micro, "asked for"), PlanLine("accumulation", passes, "asked for"), needed
    reason = f"{asked} would not fit into {format_size(limit or 0)}{shared}"
    kept = f"keeps {asked * passes} sequences a step"
    return PlanLine("micro_batch", micro, reason), PlanLine("accumulation", accumulation, kept), needed


def needed_bytes(
    config: TrainConfig, device: DeviceInfo, machine: Machine, work: Workload, precision: str, *, accumulates: bool
) -> int:
    """Bytes of one process, in the memory of the device, by arithmetic."""
    training, average = config.training, config.training.ema_decay is not None
    copied = 0
    if training.async_save and device.kind != "cuda":  # the copy lies in main memory
        copied = checkpoint_bytes(work.parameters, work.trainable, adapter=config.lora.enabled, average=average)
    build = CUDA_BUILD_BYTES if device.kind != "cuda" and "+cu" in machine.torch else 0
    return build + training_bytes(
        work,
        precision,
        checkpointing=training.gradient_checkpointing,
        accumulates=accumulates,
        average=average,
        copied=copied,
    )


def memory_line(needed: int) -> PlanLine:
    """What a run takes, for a reader."""
    return PlanLine("memory", format_size(needed), "weights, moments, activations and logits, by arithmetic")


def _divisors(number: int) -> Iterator[int]:
    return (n for n in range(number, 0, -1) if number % n == 0)


def _workers(config: TrainConfig, device: DeviceInfo) -> PlanLine:
    if config.data.num_workers is not None:
        return PlanLine("num_workers", config.data.num_workers, "asked for")
    if device.kind == "cpu":
        return PlanLine("num_workers", 0, "token shards are memory-mapped, and the cores are needed for computing")
    return PlanLine("num_workers", 2, "batches are read while the device computes")


def _pinned(config: TrainConfig, device: DeviceInfo) -> PlanLine:
    asked = config.data.pin_memory
    if asked and device.kind != "cuda":
        raise DeviceError(f"data.pin_memory: page-locked memory serves CUDA, not {device.kind}", "leave it out")
    if asked is not None:
        return PlanLine("pin_memory", asked, "asked for")
    if device.kind == "cuda":
        return PlanLine("pin_memory", True, "copies to the GPU need not wait")
    return PlanLine("pin_memory", False, f"nothing is copied to another memory on {device.kind}")


def _reused(device: DeviceInfo) -> PlanLine:
    if device.kind != "cpu":
        return PlanLine("reuse_memory", False, f"torch keeps the memory of {device.kind} by itself")
    if not can_reuse_memory():
        return PlanLine("reuse_memory", False, "the C library is not glibc")
    return PlanLine("reuse_memory", True, "glibc would give back what a step frees, to have it zeroed for the next")


def choose_backend(config: TrainConfig, device: DeviceInfo, world_size: int | None = None) -> PlanLine:
    """How processes talk: as asked, else NCCL on CUDA and gloo elsewhere.

    Args:
        config: What was asked.
        device: The chosen device.
        world_size: Processes that a launcher started; None where none did.

    Raises:
        DeviceError: NCCL was asked for without CUDA.
    """
    asked = config.training.distributed_backend
    if asked == "nccl" and device.kind != "cuda":
        raise DeviceError(f"training.distributed_backend nccl: needs CUDA, not {device.kind}", "use gloo or auto")
    number = world_size or config.training.num_processes
    alone = "; one process, nothing is exchanged" if number == 1 else f"; {number} processes"
    if asked != "auto":
        return PlanLine("distributed_backend", asked, f"asked for{alone}")
    backend = "nccl" if device.kind == "cuda" else "gloo"
    return PlanLine("distributed_backend", backend, f"made for {device.kind}{alone}")


def _compile(
    config: TrainConfig, machine: Machine, device: DeviceInfo, work: Workload, speed: Speed, precision: str, passes: int
) -> PlanLine:
    asked = config.training.compile
    if asked == "never":
        return PlanLine("compile", False, "asked for")
    if config.portable_numerics:
        return PlanLine("compile", False, "portable_numerics: compiled code is made for this processor")
    if device.kind == "cpu" and machine.compiler is None:
        if asked == "always":
            raise DeviceError("training.compile always: no C++ compiler found", "install g++ or clang, or use auto")
        return PlanLine("compile", False, "no C++ compiler found")
    if asked == "always":
        return PlanLine("compile", True, "asked for")
    if device.kind == "mps":
        return PlanLine("compile", False, "not used on mps")
    rate = (speed.bf16 if precision == "bf16" else max(speed.fp32, speed.onednn)) * ACHIEVED
    seconds = passes * work.flops() / rate
    saved = seconds * COMPILE_GAIN
    reason = f"about {format_duration(seconds)} of computing would shrink by {format_duration(saved)}"
    wins = saved > COMPILE_MARGIN * COMPILE_SECONDS
    return PlanLine("compile", wins, f"{reason}, compiling costs about {_COMPILING}")


def _step_reason(config: TrainConfig, work: Workload, sequences: int) -> str:
    training = config.training
    stops = {
        "max_steps": training.max_steps,
        "num_train_epochs": training.num_train_epochs,
        "max_tokens": training.max_tokens,
    }
    named = [f"training.{name} {value:,.10g}" for name, value in stops.items() if value is not None]
    named = named or ["one pass over the text"]
    if training.max_time is not None:
        named.append(f"at most {format_duration(training.max_time)}")
    return f"{', '.join(named)}; {sequences * work.block_size:,} tokens read a step"
