"""hidden states and labels -> a loss as a sum and a count."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.models.chunked_loss import each_nats, summed_nats

IGNORED = -100
"""Label of a position that is not predicted."""


@dataclass(frozen=True)
class TokenLoss:
    """A loss that is divided once, at the end, by the tokens that counted.

    Attributes:
        nats: Sum of the negative log-likelihoods, a scalar.
        tokens: Number of labels behind that sum.
    """

    nats: Tensor
    tokens: int

    def mean(self) -> float:
        """Nats for each token."""
        return float(self.nats.detach()) / max(self.tokens, 1)


def token_loss(hidden: Tensor, output_weight: Tensor, labels: Tensor, exact: Tensor | None = None) -> TokenLoss:
    """Cross-entropy of the next token, summed over a batch; but in fp16, the logits of a batch never exist whole.

    The labels are shifted already: `labels[b, t]` is the token after `input_ids[b, t]`.

    Args:
        hidden: `(B, T, D)` final hidden states.
        output_weight: `(V, D)` output head.
        labels: `(B, T)` token ids; `IGNORED` where nothing is predicted.
        exact: See `summed_nats`; in fp16 it is not used.
    """
    rows, wanted = hidden.flatten(0, 1), labels.flatten()
    counted = wanted != IGNORED
    tokens = int(counted.sum())
    if tokens < len(wanted):  # what is not predicted needs no logits
        places = counted.nonzero().squeeze(1)
        rows, wanted = rows[places], wanted[places]
    if rows.dtype == torch.float16:  # the scale of the loss has to come before anything is rounded
        return TokenLoss(logits_loss(F.linear(rows, output_weight), wanted), tokens)
    return TokenLoss(summed_nats(rows, output_weight, wanted, exact), tokens)


def label_nats(hidden: Tensor, output_weight: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of each label that is not `IGNORED`, `(N,)` in their order, at least in fp32.

    Args:
        hidden: `(B, T, D)` final hidden states.
        output_weight: `(V, D)` output head.
        labels: `(B, T)` token ids, shifted already.
    """
    places = (labels.flatten() != IGNORED).nonzero().squeeze(1)
    return each_nats(hidden.flatten(0, 1)[places], output_weight, labels.flatten()[places])


def logits_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods, computed in fp32.

    Args:
        logits: `(N, V)`.
        labels: `(N,)`; `IGNORED` positions add nothing.
    """
    return F.cross_entropy(logits.to(torch.float32), labels, ignore_index=IGNORED, reduction="sum")
