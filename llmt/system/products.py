"""Which library multiplies fp32 matrices on the CPU.

torch gives them to Intel's MKL, which does not use the widest instructions of AMD's processors. oneDNN, which torch has
too, does; torch reaches it by a setting that is called a precision, and that lowers it only where a processor has
matrix tiles. So it is used where it is exact, which is measured, and on AMD's processors, where it was the faster for
the products of a step.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmt.errors import DeviceError

MOST_ERROR = 1e-6
"""Relative error of a product in fp32; bf16 makes 1e-3."""

SIZE = 256
"""Rows and columns of the matrices that are tried."""


def use_onednn() -> None:
    """Let oneDNN multiply fp32 matrices from now on, on the CPU.

    Raises:
        DeviceError: It is not to be used on this processor, though another one of the run decided for it.
    """
    if not can_use_onednn():
        raise DeviceError(
            "fp32_products onednn: this processor is not to multiply by it, and the first one of the run does",
            "the same kind of processor for all processes, or --precision bf16",
        )
    _switch()


def _switch() -> None:
    _settings().fp32_precision = "bf16"


@contextmanager
def as_before() -> Iterator[None]:
    """Whoever multiplies fp32 matrices now does so again afterwards.

    Meanwhile torch may refuse to say its precision of fp32 products for all libraries at once, if it was set here.
    """
    settings = _settings()
    before = settings.fp32_precision
    try:
        yield
    finally:
        if settings.fp32_precision != before:
            settings.fp32_precision = "none"  # what is said for all of torch
        if settings.fp32_precision != before:
            settings.fp32_precision = before


def can_use_onednn() -> bool:
    """The processor is AMD's, torch lets oneDNN multiply on it, and the products are exact in fp32."""
    import torch

    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # Where a processor has no bf16 instructions at all, torch heeds the setting nowhere.
    if not (has_both and is_amd() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    with as_before():
        _switch()
        error = (left @ right - expected).norm() / expected.norm()
    return bool(error < MOST_ERROR)


def is_amd() -> bool:
    """The processor says that it is AMD's."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in lines)
    return "AuthenticAMD" in platform.processor()


def _settings() -> Any:
    import torch

    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
