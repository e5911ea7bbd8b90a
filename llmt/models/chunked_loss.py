"""hidden states and labels -> loss and its gradients, a few rows of logits at a time.

The logits of a batch, `(N, V)`, are the largest thing that a model with few layers makes. What they are for, the loss
and the gradients of the hidden states and of the output head, is known as soon as a few rows of them are. So the
gradients are made together with the loss, and only one piece of the logits exists at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 23
"""Logits at a time, so that more tokens in a vocabulary take no more memory."""

FEWEST_ROWS = 256
"""Rows of a piece at least: with fewer, adding up the head's gradient would take longer than its products."""

HEAD_ROWS = 2048
"""Tokens of the vocabulary whose gradients of one piece exist at once."""

CACHED_ROWS = 16
"""Rows whose softmax is taken at once on a CPU: in fp32 they stay in its cache."""

FAINTEST = 1e-30
"""Likelihood down to which its logarithm is exact in fp32."""


def summed_nats(hidden: Tensor, output_weight: Tensor, labels: Tensor, exact: Tensor | None = None) -> Tensor:
    """Sum of the negative log-likelihoods of the labels, at least in fp32; its gradients are those of the plain loss.

    Args:
        hidden: `(N, D)`.
        output_weight: `(V, D)`.
        labels: `(N,)`, each below V.
        exact: The fp32 values that the output head was rounded from, where they are to have its gradient instead: it
            was summed in fp32, and is neither rounded nor copied for them.

    Returns:
        A scalar. It can be differentiated once.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or output_weight.requires_grad):
        weight = output_weight if exact is None else output_weight.detach()
        found: Tensor = _SummedNats.apply(hidden, weight, labels, exact)
        return found
    return _walk(hidden, output_weight, labels, None, None)


def each_nats(hidden: Tensor, output_weight: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of each label, at least in fp32, for losses that weigh them.

    How they weigh is not known before the backward pass, which makes the logits a second time, a few rows at once.

    Args:
        hidden: `(N, D)`.
        output_weight: `(V, D)`.
        labels: `(N,)`, each below V.

    Returns:
        `(N,)`. It can be differentiated once.
    """
    found: Tensor = _EachNats.apply(hidden, output_weight, labels)
    return found


def _walk(hidden: Tensor, weight: Tensor, labels: Tensor, by_hidden: Tensor | None, by_weight: Tensor | None) -> Tensor:
    """The sum; the gradients go into `by_hidden` and `by_weight` where these are given."""
    nats = torch.zeros((), dtype=_wide(hidden), device=hidden.device)
    # Logits of a piece lie where the last one's did: new ones would be made while those still exist.
    room = hidden.new_empty(min(len(hidden), _rows_of(weight)), len(weight))
    for piece in _pieces(hidden, weight):
        rows, wanted = hidden[piece], labels[piece, None]
        logits = torch.mm(rows, weight.T, out=room[: len(rows)])
        if by_hidden is None and by_weight is None:
            nats -= logits.log_softmax(1, dtype=nats.dtype).gather(1, wanted).sum()
            continue
        nats += _to_slopes(logits, wanted)
        if by_hidden is not None:
            torch.mm(logits, weight, out=by_hidden[piece])
        if by_weight is not None:
            _add_products(by_weight, logits, rows)
    return nats


def _add_products(by_weight: Tensor, slopes: Tensor, rows: Tensor) -> None:
    """Add the head's gradient of one piece, a few tokens at a time: for a sum in another format torch copies it."""
    for start in range(0, len(by_weight), HEAD_ROWS):
        tokens = slice(start, start + HEAD_ROWS)
        by_weight[tokens].add_(slopes[:, tokens].T @ rows)


def _to_slopes(logits: Tensor, wanted: Tensor) -> Tensor:
    """The negative log-likelihood of a piece; its logits become its slopes, the softmax less 1 at the label."""
    nats = torch.zeros((), dtype=_wide(logits), device=logits.device)
    size = CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), size):
        places = wanted[start : start + size]
        likelihoods, found = _softmax(logits[start : start + size], places)
        nats -= found.sum()
        slopes = likelihoods.scatter_add_(1, places, torch.full_like(places, -1.0, dtype=likelihoods.dtype))
        logits[start : start + size] = slopes
    return nats


def _softmax(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Likelihoods, and the logarithms of those wanted.

    On a CPU a logarithm of the softmax would make its exponentials a second time. It is needed where the likelihood of
    a label is too small for its number format; elsewhere this is not known without waiting for the device.
    """
    if logits.device.type == "cpu":
        likelihoods = logits.softmax(1, dtype=_wide(logits))
        found = likelihoods.gather(1, wanted)
        if float(found.min()) > FAINTEST:
            return likelihoods, found.log_()
    logs = logits.log_softmax(1, dtype=_wide(logits))
    found = logs.gather(1, wanted)
    return logs.exp_(), found


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _rows_of(weight: Tensor) -> int:
    """Rows of a piece."""
    return max(PIECE // len(weight), FEWEST_ROWS)


def _pieces(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    size = _rows_of(weight)
    return (slice(start, start + size) for start in range(0, len(hidden), size))


class _EachNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        nats = torch.empty(len(hidden), dtype=_wide(hidden), device=hidden.device)
        for piece in _pieces(hidden, weight):
            likelihoods = (hidden[piece] @ weight.T).log_softmax(1, dtype=nats.dtype)
            nats[piece] = -likelihoods.gather(1, labels[piece, None])[:, 0]
        ctx.save_for_backward(hidden, weight, labels)
        return nats

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, labels = ctx.saved_tensors
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight, dtype=_wide(weight)) if ctx.needs_input_grad[1] else None
        for piece in _pieces(hidden, weight):
            rows, wanted = hidden[piece], labels[piece, None]
            likelihoods = (rows @ weight.T).softmax(1, dtype=_wide(hidden))
            found = likelihoods.scatter_add_(1, wanted, torch.full_like(wanted, -1.0, dtype=likelihoods.dtype))
            by_logits = found.mul_(slopes[piece, None]).to(hidden.dtype)  # weighed before anything is rounded
            if by_hidden is not None:
                torch.mm(by_logits, weight, out=by_hidden[piece])
            if by_weight is not None:
                _add_products(by_weight, by_logits, rows)
        return by_hidden, None if by_weight is None else by_weight.to(weight.dtype), None


class _SummedNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, exact: Tensor | None) -> Tensor:
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        by_weight = torch.zeros_like(weight, dtype=_wide(weight)) if learns else None
        nats = _walk(hidden, weight, labels, by_hidden, by_weight)
        ctx.save_for_backward(by_hidden, by_weight)
        ctx.dtype = weight.dtype
        return nats

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        by_hidden, by_weight = ctx.saved_tensors
        # Multiplied in fp32, which a scalar alone does not do on every device. In place: the head's gradient in fp32 is
        # large, and nobody needs it again.
        if by_hidden is not None:
            by_hidden.copy_(by_hidden * slope.to(_wide(by_hidden)))
        if by_weight is not None:
            by_weight.mul_(slope)
        if ctx.needs_input_grad[3]:
            return by_hidden, None, None, by_weight
        return by_hidden, None if by_weight is None else by_weight.to(ctx.dtype), None, None
