"""queries, keys, values -> mixed values, by whichever exact way is fastest on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.models.dropout import dropout as drop

ROWS = 128
"""Query rows of one block on the CPU: the keys after a block's last row are never multiplied."""


def document_visibility(position_ids: Tensor) -> Tensor:
    """Which inputs see which: `(B, 1, T, T)`, true for a key of the same document that does not stand behind.

    Args:
        position_ids: `(B, T)`; each 0 begins another document.
    """
    document = (position_ids == 0).cumsum(1)  # (B, T)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones_like(same[:1, :1]).tril()


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """Attention in which a token sees itself and what stands before it.

    The last query belongs to the last key, so that a cached prefix is seen whole.

    Args:
        query: `(B, H, T, E)`.
        key: `(B, K, S, E)` with S >= T; each key head serves H / K query heads.
        value: `(B, K, S, E)`.
        dropout: Share of attention weights dropped.
        visible: `(B, 1, T, T)`, what each query sees, where it is not all that stands before it.

    Returns:
        `(B, H, T, E)`.
    """
    T, S = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if T == S and T > 1:
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
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
    """`causal_attention` for T = S as batched products over blocks of query rows.

    On CPUs with bf16 products this beats the fused kernel, forward and backward; the softmax is in fp32.
    """
    _, H, T, E = query.shape
    groups = H // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query = query * E**-0.5
    mixed = []
    for start in range(0, T, ROWS):
        end = min(start + ROWS, T)
        scores = query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2)  # (B, H, rows, end)
        if visible is None:
            hidden = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu(start + 1)
        else:
            hidden = ~visible[:, :, start:end, :end]
        weights = scores.float().masked_fill(hidden, float("-inf")).softmax(-1).to(query.dtype)
        weights = drop(weights, dropout) if dropout else weights
        mixed.append(weights @ value[:, :, :end])  # (B, H, rows, E)
    return torch.cat(mixed, dim=2)
