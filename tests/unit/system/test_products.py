"""The library that multiplies fp32 matrices."""

import pytest
import torch

from llmt.errors import DeviceError
from llmt.system.machine import measure_speed
from llmt.system.products import MOST_ERROR, as_before, can_use_onednn, is_amd, use_onednn


def test_what_may_be_used_is_exact_and_measured() -> None:
    """Where oneDNN may multiply, its products are those of fp64 but for fp32's rounding, and its speed is known."""
    found = can_use_onednn()
    assert found <= is_amd()
    assert (measure_speed("cpu", 1).onednn > 0) is found
    if not found:
        pytest.skip("oneDNN is not to be used on this processor")
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(300, 500, generator=generator), torch.randn(500, 200, generator=generator)
    with as_before():
        use_onednn()
        error = float((left @ right - left.double() @ right.double()).norm() / (left.double() @ right.double()).norm())
    assert 0 < error < MOST_ERROR


def test_a_lower_precision_would_be_seen() -> None:
    """What rounds its factors to bf16, as oneDNN does on processors with tiles for it, is far above the limit."""
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    rounded = left.bfloat16().float() @ right.bfloat16().float()
    exact = left.double() @ right.double()
    assert float((rounded - exact).norm() / exact.norm()) > 100 * MOST_ERROR


def _multiply_with_onednn() -> None:
    with as_before():
        use_onednn()
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        raise ZeroDivisionError


@pytest.mark.skipif(not can_use_onednn(), reason="oneDNN is not to be used on this processor")
@pytest.mark.parametrize("whole", ["none", "ieee"])
def test_it_is_set_and_set_back(whole: str) -> None:
    """Inside, the setting is another; afterwards it is what it was, after an error too, and follows torch's own."""
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    with pytest.raises(ZeroDivisionError):
        _multiply_with_onednn()
    torch.backends.mkldnn.fp32_precision = whole
    try:
        assert torch.backends.mkldnn.matmul.fp32_precision == whole
        assert torch.get_float32_matmul_precision() == "highest"  # it fails where settings contradict each other
    finally:
        torch.backends.mkldnn.fp32_precision = "none"


def test_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first process of a run decided is an error where it would lower the precision."""
    monkeypatch.setattr("llmt.system.products.is_amd", lambda: False)
    with as_before(), pytest.raises(DeviceError, match="not to multiply by it"):
        use_onednn()
