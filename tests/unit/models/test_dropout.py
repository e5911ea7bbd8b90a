"""Dropout from few random bits: the share, the mean, the mask of the backward pass, and the same bits compiled."""

import pytest
import torch

from llmt.models.dropout import dropout
from llmt.system.machine import find_compiler


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_stays(share: float) -> None:
    """Of a million ones: as many zeros as asked for, and one other value, whose mean with them is 1."""
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 1000), share)
    assert float((found == 0).double().mean()) == pytest.approx(share, abs=0.003)
    assert len(found.unique()) == 2
    assert float(found.max()) == pytest.approx(1 / (1 - share), rel=1e-3)
    assert float(found.double().mean()) == pytest.approx(1.0, abs=0.01)


def test_shares_at_either_end() -> None:
    """Nearly all: what is left is finite. Less than 16 bits can say: nothing is dropped or scaled."""
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 1000), 0.9999999)
    assert bool(found.isfinite().all())
    assert 0 < int((found != 0).sum()) < 100
    assert torch.equal(dropout(torch.ones(1000), 1e-6), torch.ones(1000))


def test_values_are_dropped_independently() -> None:
    """Neighbours, which share a draw, go no more together than chance has it; nor do two calls."""
    torch.manual_seed(0)
    first, second = (dropout(torch.ones(2**20), 0.5) == 0 for _ in range(2))
    for step in (1, 2, 3, 4):
        assert float((first[step:] & first[:-step]).double().mean()) == pytest.approx(0.25, abs=0.003)
    assert float((first & second).double().mean()) == pytest.approx(0.25, abs=0.003)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_shape_and_the_mask_of_the_backward_pass(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What was dropped gets no gradient, and what was kept gets it by the same factor; the format stays."""
    torch.manual_seed(1)
    x = torch.rand(shape).add(1).to(dtype).requires_grad_(True)
    found = dropout(x, 0.5)
    found.backward(torch.ones_like(found))
    assert (found.shape, found.dtype) == (x.shape, dtype)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(found == 0, 0.0, 2.0).to(dtype))


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here: nothing can be compiled")
def test_a_seed_gives_the_same_compiled_or_not() -> None:
    """A compiled function draws the same bits, also for its backward pass; another seed draws others."""

    def passed(function: object, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        x = torch.linspace(1, 2, 4096).view(64, 64).requires_grad_(True)
        found = function(x)  # type: ignore[operator]
        found.sum().backward()
        assert x.grad is not None
        return found.detach(), x.grad

    def twice(x: torch.Tensor) -> torch.Tensor:
        return dropout(dropout(x, 0.3) * 3, 0.2)

    plain, compiled = passed(twice, 5), passed(torch.compile(twice, dynamic=False), 5)
    torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=0)
    assert not torch.equal(passed(twice, 6)[0], plain[0])
