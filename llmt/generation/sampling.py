"""logits -> the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Draw among this many likeliest tokens; 0 takes all.
        top_p: Draw among the likeliest tokens that together have this probability
            (https://arxiv.org/abs/1904.09751); 1 takes all.
        repetition_penalty: Above 1, tokens seen before become less likely (https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.0


def sample(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw one token for each row.

    Args:
        logits: `(B, V)`.
        seen: `(B, S)` token ids of the text so far.
        sampling: The rule.
        generator: Source of randomness, on the CPU: equal seeds give equal text on every device.

    Returns:
        `(B,)` token ids.
    """
    scores = logits.float().cpu()
    if sampling.repetition_penalty != 1.0:
        scores = penalize(scores, seen.cpu(), sampling.repetition_penalty)
    if sampling.temperature == 0:
        return scores.argmax(-1)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[:, -1:], float("-inf"))
    if sampling.top_p < 1:
        scores = keep_nucleus(scores, sampling.top_p)
    return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(-1)


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores `(B, V)` of seen tokens by the penalty, multiply the negative ones."""
    chosen = scores.gather(-1, seen)
    return scores.scatter(-1, seen, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Drop from `(B, V)` scores every token outside the smallest set that holds probability `top_p`."""
    ordered, order = scores.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.full_like(scores, float("-inf")).scatter(-1, order, ordered)
