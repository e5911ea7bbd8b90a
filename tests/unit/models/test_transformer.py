"""Initial weights, and the loss as a sum and a count."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.models.loss import IGNORED, token_loss
from llmt.models.transformer import TransformerLM

Make = Callable[..., TransformerLM]


def test_initial_weights(make: Make, ids: Tensor) -> None:
    """A seed decides every initial weight, and each fresh block is the identity."""
    first, second, third = make(), make(seed=9), make()
    first.initialize(1)
    second.initialize(1)
    third.initialize(2)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.model.embed_tokens.weight, third.model.embed_tokens.weight)
    assert float(first.model.embed_tokens.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        expected = first.model.norm(first.model.embed_tokens(ids))
        assert torch.equal(first.hidden_states(ids), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_once(make: Make, tied: bool) -> None:
    """The number of parameters is that of the configuration's formula, a tied head not counted twice."""
    model = make(tie_word_embeddings=tied, num_key_value_heads=2)
    assert model.num_parameters() == model.settings.num_parameters(101)


def test_uniform_model_loses_log_v(make: Make, ids: Tensor) -> None:
    """With an output head of zeros the loss is ln V for each token."""
    model = make(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert model.loss(ids, ids.roll(-1, 1)).mean() == pytest.approx(math.log(101), abs=1e-6)


def test_loss_is_a_sum_over_the_labels_that_count(make: Make, ids: Tensor) -> None:
    """The loss is the sum of -log p of the labels as they stand, not shifted; ignored ones count for nothing."""
    model = make()
    labels = torch.randint(0, 101, ids.shape)
    labels[0, 3:] = IGNORED
    labels[2] = IGNORED
    with torch.no_grad():
        loss = model.loss(ids, labels)
        probabilities = model(ids).double().log_softmax(-1)
    expected = sum(
        -float(probabilities[b, t, labels[b, t]]) for b in range(3) for t in range(17) if labels[b, t] != IGNORED
    )
    assert loss.tokens == 3 + 17
    assert float(loss.nats) == pytest.approx(expected, rel=1e-6)
    assert loss.mean() == pytest.approx(expected / 20, rel=1e-6)


def test_no_labels_no_loss(make: Make, ids: Tensor) -> None:
    """A batch without a label has a loss of zero over zero tokens, and zero gradients."""
    model = make()
    loss = model.loss(ids, torch.full_like(ids, IGNORED))
    loss.nats.backward()
    assert (loss.mean(), loss.tokens) == (0.0, 0)
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def test_bf16_loss_is_computed_in_fp32() -> None:
    """The log-likelihoods of bf16 logits are taken in fp32: equal to fp32 of the same logits."""
    hidden, weight = torch.randn(2, 5, 8).bfloat16(), torch.randn(11, 8).bfloat16()
    labels = torch.randint(0, 11, (2, 5))
    logits = F.linear(hidden, weight).float().flatten(0, 1)
    expected = F.cross_entropy(logits, labels.flatten(), reduction="sum")
    torch.testing.assert_close(token_loss(hidden, weight, labels).nats, expected, rtol=1e-6, atol=0)
