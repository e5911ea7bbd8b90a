"""Which library multiplies fp32 matrices on the CPU.

torch gives them to Intel's MKL, which does not use the widest instructions of AMD's processors. oneDNN, which torch has
too, does; torch reaches it by a setting that is called a precision, and that lowers it only where a processor has
matrix tiles. So it is used where it is exact, which is measured, and on AMD's processors, where it is never the slower.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST_ERROR = 1e-6
"""Relative error of a product in fp32; bf16 makes 1e-3."""

SIZE = 256
"""Rows and columns of the matrices that are tried."""


def use_onednn() -> None:
    """Let oneDNN multiply fp32 matrices from now on, on the CPU. Only where `can_use_onednn` says so."""
    _settings().fp32_precision = "bf16"


@contextmanager
def as_before() -> Iterator[None]:
    """Whoever multiplies fp32 matrices now does so again afterwards."""
    settings = _settings()
    before = settings.fp32_precision
    try:
        yield
    finally:
        settings.fp32_precision = before


def can_use_onednn() -> bool:
    """The processor is AMD's, torch has both libraries, and oneDNN's products are exact in fp32."""
    import torch

    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_both and is_amd()):
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    with as_before():
        use_onednn()
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
