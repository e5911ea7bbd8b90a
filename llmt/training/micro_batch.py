"""How much fits into memory at once, and what to say when it does not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from llmt.errors import OutOfMemoryError, says_out_of_memory
from llmt.system.memory import get_memory_usage, peak_memory, process_memory, reset_peak
from llmt.training.limits import Limits
from llmt.units import format_size

SHARE = 0.85
"""Share of the free memory that a trial may foresee to use."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's own allocator for CPUs raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(error)


@contextmanager
def memory_errors(step: int, limits: Limits) -> Iterator[None]:
    """Within it, memory that runs out in a step is an error that says which settings need less.

    Raises:
        OutOfMemoryError: It ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        micro, passes = limits.micro_batch, limits.accumulation
        smaller = next((n for n in range(micro // 2, 0, -1) if micro % n == 0), None)
        hint = "llmt train --gradient-checkpointing, a smaller model, or a shorter --block-size"
        if smaller is not None:
            hint = (
                f"--per-device-train-batch-size {smaller} --gradient-accumulation-steps {passes * micro // smaller} "
                "keeps the sequences of a step"
            )
        raise OutOfMemoryError(
            f"memory ran out in step {step}: {micro} sequences at once ({_used()} in use)", hint
        ) from None


def _used() -> str:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return format_size(torch.cuda.max_memory_allocated())
    return format_size(process_memory())


def largest_micro_batch(sequences: int, attempt: Callable[[int], None], device: str) -> tuple[int, str]:
    """The largest divisor of `sequences` that fits, by trial from 1 upwards, and why.

    On CUDA a trial may fail without harm. On a CPU the system would end the process: what the next trial takes is
    foreseen from the growth of the last.

    Args:
        sequences: Of one process in one step.
        attempt: Runs forward and backward over so many sequences.
        device: Kind of device.

    Raises:
        OutOfMemoryError: Not even one sequence fits.
    """
    sizes = [number for number in range(1, sequences + 1) if sequences % number == 0]
    fits, reason, failed = _grow(sizes, attempt, device)
    if failed and device == "cuda":
        torch.cuda.empty_cache()
    elif failed:  # that leaves main memory in pieces, in which the largest that fitted may fit no more
        fits = next((micro for micro in reversed(sizes) if micro <= max(fits // 2, 1) and _works(attempt, micro)), 0)
    if not fits:
        raise OutOfMemoryError(
            "training.auto_micro_batch: not even one sequence fits",
            "llmt train --gradient-checkpointing, a smaller model, or a shorter --block-size",
        )
    return fits, f"found by trial: {reason}"


def _grow(sizes: list[int], attempt: Callable[[int], None], device: str) -> tuple[int, str, bool]:
    """The largest size before one that did not fit or would not, 0 for none; why; and whether one failed."""
    reset_peak()
    before, fits = process_memory(), 0
    for micro in sizes:
        foreseen = (peak_memory() - before) * micro // fits if device != "cuda" and fits else 0
        room = round((get_memory_usage().available or foreseen) * SHARE)
        if foreseen > room:
            return fits, f"{micro} would take about {format_size(foreseen)} of {format_size(room)}", False
        if not _works(attempt, micro):
            return fits, f"{micro} did not fit", True
        fits = micro
    return fits, "all sequences of a step fit at once", False


def _works(attempt: Callable[[int], None], micro: int) -> bool:
    """Whether an attempt came through."""
    try:
        attempt(micro)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
