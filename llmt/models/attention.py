"""queries, keys, values -> mixed values, by whichever exact way is fastest on the device."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.models.dropout import draw_kept

ROWS = 128
"""Query rows of one block on the CPU: the keys after a block's last row are never multiplied."""


LONGEST_IN_FP32 = 512
"""Tokens up to which blocks are faster than the fused kernel in fp32, where oneDNN multiplies."""


def document_visibility(position_ids: Tensor) -> Tensor:
    """Which inputs see which: `(B, 1, T, T)`, true for a key of the same document that does not stand behind.

    Args:
        position_ids: `(B, T)`; each 0 begins another document.
    """
    document = (position_ids == 0).cumsum(1)  # (B, T)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones_like(same[:1, :1]).tril()


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float = 0.0,
    visible: Tensor | None = None,
    fp32_blocks: bool = False,
) -> Tensor:
    """Attention in which a token sees itself and what stands before it.

    The last query belongs to the last key, so that a cached prefix is seen whole.

    Args:
        query: `(B, H, T, E)`.
        key: `(B, K, S, E)` with S >= T; each key head serves H / K query heads.
        value: `(B, K, S, E)`.
        dropout: Share of attention weights dropped.
        visible: `(B, 1, T, T)`, what each query sees, where it is not all that stands before it.
        fp32_blocks: oneDNN multiplies in fp32: short sequences go by blocks in training on a CPU, as all do in bf16.

    Returns:
        `(B, H, T, E)`.
    """
    T, S = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if T == S and T > 1:
        blocks = query.dtype == torch.bfloat16 or (
            fp32_blocks and query.dtype == torch.float32 and T <= LONGEST_IN_FP32
        )
        if query.device.type == "cpu" and blocks and torch.is_grad_enabled():
            return blocked_attention(query, key, value, dropout=dropout, visible=visible)
        if visible is not None:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, dropout_p=dropout, enable_gqa=grouped
            )
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, enable_gqa=grouped)
    seen = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T) if T > 1 else None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, enable_gqa=grouped)


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """`causal_attention` for T = S on the CPU, as batched products over blocks of query rows.

    With bf16 products this beats the fused kernel, forward and backward. The softmax is in fp32 and is not kept for
    the backward pass, which makes it again: it would take memory that grows with the square of the length. It can be
    differentiated once.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    found: Tensor = _BlockedAttention.apply(query * query.shape[-1] ** -0.5, key, value, dropout, visible)
    return found


class _BlockedAttention(torch.autograd.Function):
    """`(B, H, T, E)` queries, scaled already, keys and values to `(B, H, T, E)`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float, visible: Tensor | None) -> Tensor:
        mixed, drawn = [], []
        for start, end in _blocks(query.shape[2]):
            weights = _weights(query[:, :, start:end], key[:, :, :end], start, visible).to(query.dtype)
            if dropout:
                kept, ctx.scale = draw_kept(weights, dropout)
                weights = weights * kept * ctx.scale
                drawn.append(kept)
            mixed.append(weights @ value[:, :, :end])  # (B, H, rows, E)
        ctx.save_for_backward(query, key, value, visible, *drawn)
        return torch.cat(mixed, dim=2)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, visible, *drawn = ctx.saved_tensors
        by_query, by_key, by_value = [], torch.zeros_like(key), torch.zeros_like(value)
        for number, (start, end) in enumerate(_blocks(query.shape[2])):
            by_mixed = slope[:, :, start:end]
            rows, seen = after(query[:, :, start:end], by_mixed), key[:, :, :end]
            weights = _weights(rows, seen, start, visible)
            used, by_weights = weights.to(query.dtype), by_mixed @ value[:, :, :end].transpose(-1, -2)
            if drawn:
                used, by_weights = used * drawn[number] * ctx.scale, by_weights * drawn[number] * ctx.scale
            by_scores = _softmax_slopes(by_weights.to(weights.dtype), weights).to(query.dtype)
            by_query.append(by_scores @ seen)
            by_key[:, :, :end] += by_scores.transpose(-1, -2) @ rows
            by_value[:, :, :end] += used.transpose(-1, -2) @ by_mixed
        return torch.cat(by_query, dim=2), by_key, by_value, None, None


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """First row of each block, and the one after its last."""
    return ((start, min(start + ROWS, length)) for start in range(0, length, ROWS))


def _weights(rows: Tensor, seen: Tensor, start: int, visible: Tensor | None) -> Tensor:
    """`(B, H, rows, E)` queries from row `start` on, and all keys until their last, to `(B, H, rows, end)` in fp32."""
    scores = rows @ seen.transpose(-1, -2)
    end = scores.shape[-1]
    if visible is None:
        # 32 bits, for a compiler that knows no vectors of 64
        places = torch.arange(end, dtype=torch.int32, device=rows.device)
        hidden = places > places[start:, None]
    else:
        hidden = ~visible[:, :, start:end, :end]
    return scores.float().masked_fill(hidden, float("-inf")).softmax(-1)


def _softmax_slopes(slopes: Tensor, weights: Tensor) -> Tensor:
    """Slopes of what a softmax got, from those of the weights that it gave."""
    found: Tensor = torch.ops.aten._softmax_backward_data(slopes, weights, -1, weights.dtype)
    return found


# A compiler that sees the same product in both passes would compute it once and keep it, which is not what is wanted.
@torch.library.custom_op("llmt::after", mutates_args=())
def after(x: Tensor, slope: Tensor) -> Tensor:
    """A copy of `x` that exists only once `slope` does."""
    return x.clone()


@after.register_fake
def _(x: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(x)
