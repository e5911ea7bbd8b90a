"""The loss in pieces against the plain one, which makes all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.models import chunked_loss
from llmt.models.chunked_loss import summed_nats
from llmt.models.loss import IGNORED, token_loss
from llmt.system import estimate

ROWS = 16
"""Of a piece, in these tests."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of few rows, so that a test has several."""
    monkeypatch.setattr(chunked_loss, "PIECE", 1)
    monkeypatch.setattr(chunked_loss, "FEWEST_ROWS", ROWS)
    monkeypatch.setattr(chunked_loss, "CACHED_ROWS", 5)
    monkeypatch.setattr(chunked_loss, "HEAD_ROWS", 40)


def test_the_estimate_counts_such_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run is said to take is computed with the sizes that the loss uses."""
    monkeypatch.undo()
    for name in ("PIECE", "FEWEST_ROWS", "HEAD_ROWS"):
        assert getattr(chunked_loss, name) == getattr(estimate, name)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over all logits, in at least fp32."""
    logits = F.linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32))
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def made(rows: int, dtype: torch.dtype, vocab_size: int = 97) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, an output head, and labels of which every seventh does not count."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 24, generator=generator).to(dtype).requires_grad_(True)
    weight = (torch.randn(vocab_size, 24, generator=generator) * 0.4).to(dtype).requires_grad_(True)
    labels = torch.randint(vocab_size, (rows,), generator=generator)
    labels[::7] = IGNORED
    return hidden, weight, labels


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Of a loss that is divided as training divides it."""
    return list(torch.autograd.grad(loss / 300, tensors))


def summed(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """As training takes it, with rows that do not count."""
    return token_loss(hidden[None], weight, labels[None]).nats


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize("rows", [1, 7, ROWS, ROWS + 1, 3 * ROWS - 5])
def test_loss_and_gradients_are_the_plain_ones(rows: int, dtype: torch.dtype, close: float) -> None:
    """For one piece, a piece exactly, and a rest."""
    hidden, weight, labels = made(rows, dtype)
    found, expected = summed(hidden, weight, labels), plain(hidden, weight, labels)
    torch.testing.assert_close(found, expected, rtol=min(close, 1e-5), atol=1e-6)
    for one, other in zip(gradients(found, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert one.dtype == other.dtype == dtype
        assert float((one - other).abs().max()) <= close * max(float(other.abs().max()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_too_unlikely_for_fp32(dtype: torch.dtype) -> None:
    """Its likelihood rounds to 0, and its loss is as large as it is."""
    hidden, weight, labels = made(40, dtype)
    with torch.no_grad():
        hidden *= 200
    found, expected = summed(hidden, weight, labels), plain(hidden, weight, labels)
    highest = F.cross_entropy(F.linear(hidden, weight).float(), labels, ignore_index=IGNORED, reduction="none").max()
    assert 200 < float(highest.detach()) < float("inf")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    close = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(gradients(found, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert float((one - other).abs().max()) <= close * float(other.abs().max())


def test_the_exact_values_get_the_gradient_of_a_rounded_head() -> None:
    """In fp32 as it was summed: the same but for the last rounding, twice as much after two passes, never copied."""
    hidden, weight, labels = made(60, torch.bfloat16)
    exact = weight.detach().float().requires_grad_(True)
    places: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.dtype == torch.float32 and found.shape == weight.shape:
                places.append(found.data_ptr())
            return found

    with Watch():
        (token_loss(hidden[None], weight, labels[None], exact).nats / 300).backward()
    assert weight.grad is None
    assert exact.grad is not None
    assert set(places) == {exact.grad.data_ptr()}
    (rounded,) = gradients(summed(hidden, weight, labels), weight)
    once = exact.grad.clone()
    assert torch.equal(once.to(torch.bfloat16), rounded)
    assert not torch.equal(once, rounded.float())
    (token_loss(hidden[None], weight, labels[None], exact).nats / 300).backward()
    torch.testing.assert_close(exact.grad, 2 * once)


def test_what_is_frozen_gets_no_gradient() -> None:
    """Under an adapter the head is frozen; of fixed features the states are."""
    hidden, weight, labels = made(60, torch.float32)
    (by_hidden,) = gradients(summed(hidden, weight.detach(), labels), hidden)
    (by_weight,) = gradients(summed(hidden.detach(), weight, labels), weight)
    expected = gradients(plain(hidden, weight, labels), hidden, weight)
    torch.testing.assert_close([by_hidden, by_weight], expected)


def test_rows_that_do_not_count() -> None:
    """With no label at all the loss and every gradient are exactly 0."""
    hidden, weight, labels = made(20, torch.float32)
    loss = summed(hidden, weight, torch.full_like(labels, IGNORED))
    assert float(loss.detach()) == 0.0
    assert not any(bool(gradient.any()) for gradient in gradients(loss, hidden, weight))


def test_nothing_is_made_that_is_not_wanted() -> None:
    """Without gradients the sum is the same, and no slope is computed."""
    hidden, weight, labels = made(60, torch.float32)
    done: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            done.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        loss = summed(hidden, weight, labels)
    assert any("scatter_add" in name for name in done)
    done.clear()
    with torch.no_grad(), Watch():
        measured = summed(hidden, weight, labels)
    assert not measured.requires_grad
    assert not any("scatter_add" in name or "exp_" in name for name in done)
    assert float(measured) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_half_precision_is_scaled_before_it_is_rounded() -> None:
    """In fp16 slopes below its smallest number live as long as the loss is multiplied, as training multiplies it."""
    head = torch.tensor([[1.0, 0.0]] * 60_000, dtype=torch.float16).requires_grad_(True)
    states, labels = torch.full((1, 1, 2), 0.001, dtype=torch.float16), torch.zeros(1, 1, dtype=torch.int64)
    (slopes,) = torch.autograd.grad(token_loss(states, head, labels).nats * 4096, head)
    assert int((slopes == 0).sum()) == 0
    assert not bool(torch.autograd.grad(summed_nats(states[0], head, labels[0]), head)[0][1:].any())


def test_a_number_that_is_none_comes_through() -> None:
    """A NaN in one row is one in the loss and in the gradients: nothing hides it."""
    hidden, weight, labels = made(20, torch.float32)
    with torch.no_grad():
        hidden[3, 0] = float("nan")
    loss = summed(hidden, weight, labels)
    assert not bool(loss.isfinite())
    assert not any(bool(gradient.isfinite().all()) for gradient in gradients(loss, hidden, weight))


def test_it_is_differentiated_once() -> None:
    """What is known after the first time is not known any more: a second time is an error, not a wrong number."""
    hidden, weight, labels = made(20, torch.float32)
    loss = summed_nats(hidden, weight, labels.clamp(min=0))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_more_rows_than_that_at_once() -> None:
    """The largest tensor that is made is as large as the head, whose gradient it is; all logits never exist."""
    hidden, weight, labels = made(64, torch.float32)
    sizes: list[int] = []
    rooms: set[int] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                sizes.append(found.numel())
                if found.shape == (ROWS, 97) and "mm" in str(func):
                    rooms.add(found.data_ptr())
            return found

    with Watch():
        gradients(summed(hidden, weight, labels), hidden, weight)
    assert max(sizes) == weight.numel()
    assert ROWS * 97 in sizes
    assert len(rooms) == 1, "a piece's logits take the place of the last one's"
