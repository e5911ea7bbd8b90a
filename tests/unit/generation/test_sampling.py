"""The sampling rules against plain reference implementations."""

import pytest
import torch

from llmt.generation.sampling import Sampling, keep_nucleus, penalize, sample

INFINITY = float("inf")
GREEDY = Sampling(temperature=0)


def _logits(rows: int = 6, vocabulary: int = 50) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(3)) * 3


def _nucleus(row: list[float], top_p: float) -> set[int]:
    """The smallest set of likeliest tokens that together reach `top_p`, one by one."""
    probabilities = torch.tensor(row, dtype=torch.float64).softmax(-1).tolist()
    kept: set[int] = set()
    for token in sorted(range(len(row)), key=lambda t: -probabilities[t]):
        kept.add(token)
        if sum(probabilities[t] for t in kept) >= top_p:
            break
    return kept


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_nucleus(top_p: float) -> None:
    """The tokens kept are those of a plain implementation, and their scores are unchanged."""
    logits = _logits()
    kept = keep_nucleus(logits, top_p)
    for before, after in zip(logits.tolist(), kept.tolist(), strict=True):
        assert {t for t, score in enumerate(after) if score != -INFINITY} == _nucleus(before, top_p)
        assert all(score in (before[t], -INFINITY) for t, score in enumerate(after))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty(penalty: float) -> None:
    """Seen tokens' positive scores are divided and negative ones multiplied, once however often they were seen."""
    logits = _logits(2)
    seen = torch.tensor([[0, 1, 2, 0, 0], [7, 7, 8, 9, 7]])
    expected = logits.clone()
    for row in range(2):
        for token in set(seen[row].tolist()):
            score = logits[row, token]
            expected[row, token] = score / penalty if score > 0 else score * penalty
    assert torch.equal(penalize(logits, seen, penalty), expected)


def test_temperature_zero_and_top_k_one_are_greedy() -> None:
    """Both take the likeliest token of each row."""
    logits, seen = _logits(), torch.zeros(6, 1, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(sample(logits, seen, GREEDY, generator), logits.argmax(-1))
    only = Sampling(temperature=5.0, top_k=1, top_p=1.0)
    assert torch.equal(sample(logits, seen, only, generator), logits.argmax(-1))


@pytest.mark.parametrize("rule", [
    Sampling(temperature=1.0, top_k=0, top_p=1.0), Sampling(temperature=0.5, top_k=0, top_p=1.0),
    Sampling(temperature=1.0, top_k=3, top_p=1.0), Sampling(temperature=1.0, top_k=0, top_p=0.6),
    Sampling(temperature=2.0, top_k=4, top_p=0.7),
], ids=str)  # fmt: skip
def test_frequencies_are_the_probabilities(rule: Sampling) -> None:
    """Over 40,000 draws each token comes as often as temperature, then top-k, then top-p say."""
    logits = _logits(1, 8)
    scores = logits[0].double() / rule.temperature
    if rule.top_k:
        scores[scores < scores.sort(descending=True).values[rule.top_k - 1]] = -INFINITY
    if rule.top_p < 1:
        kept = _nucleus(scores.tolist(), rule.top_p)
        scores = torch.tensor([s if t in kept else -INFINITY for t, s in enumerate(scores.tolist())])
    expected = scores.softmax(-1)
    rows = logits.expand(40_000, -1)
    drawn = sample(rows, torch.zeros(40_000, 1, dtype=torch.long), rule, torch.Generator().manual_seed(1))
    found = torch.bincount(drawn, minlength=8) / 40_000
    assert torch.allclose(found.double(), expected.double(), atol=0.012)
    assert not bool(found[expected == 0].any())
