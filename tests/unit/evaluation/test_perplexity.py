"""Held-out loss against a slow reference."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from llmt.config.model import ModelConfig
from llmt.data.batch import Batch
from llmt.data.loader import evaluation_batches
from llmt.data.sequences import BlockSequences
from llmt.data.shards import ShardSet
from llmt.evaluation.perplexity import EvalReport, evaluate
from llmt.models.transformer import TransformerLM

BLOCK = 16


@pytest.fixture
def model() -> TransformerLM:
    """Vocabulary 61, with dropout, in training mode."""
    shape = ModelConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.2
    )
    model = TransformerLM(shape, 61, BLOCK)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.train()


def _shards(tokens: int) -> ShardSet:
    """Random ids behind an end-of-text id; 3 bytes for each token but the last."""
    ids = np.random.default_rng(tokens).integers(1, 61, tokens).astype("<u2")
    ids[0] = ids[-1] = 0
    return ShardSet(ids, np.array([1, tokens], dtype="<u8"), 3 * (tokens - 2), 61, 0)


def _slow(model: TransformerLM, shards: ShardSet) -> float:
    """Nats of every id but the first, position by position in float64, each block with its own context."""
    model.eval()
    ids, nats = [int(i) for i in shards.tokens], 0.0
    for place in range(1, len(ids)):
        start = (place - 1) // BLOCK * BLOCK
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]]))[0, -1].double()
        nats -= float(logits[ids[place]] - logits.logsumexp(-1))
    model.train()
    return nats


@pytest.mark.parametrize("tokens", [2, 3, BLOCK, BLOCK + 1, BLOCK + 2, 5 * BLOCK, 5 * BLOCK + 7])
def test_equals_the_slow_reference(model: TransformerLM, tokens: int) -> None:
    """The sum is that of the plain reference, every id but the first counted once, for sets of any size."""
    shards = _shards(tokens)
    report = evaluate(model, evaluation_batches(BlockSequences(shards, BLOCK), 4), text_bytes=shards.text_bytes)
    assert report.tokens == tokens - 1
    assert report.nats == pytest.approx(_slow(model, shards), rel=1e-6)
    assert report.loss == report.nats / (tokens - 1)
    assert report.perplexity == pytest.approx(math.exp(report.loss))


@pytest.mark.parametrize("offsets", [(1, 40), (1, 9, 40), (1, 17, 18, 33, 40), (1, 5, 16, 17, 39, 40)], ids=str)
def test_documents_are_measured_apart(model: TransformerLM, offsets: tuple[int, ...]) -> None:
    """With a document mask the context of an id goes back to the end-of-text id before its document, no further."""
    shards = dataclasses.replace(_shards(40), offsets=np.array(offsets, dtype="<u8"))
    model.eval()
    ids, nats = [int(i) for i in shards.tokens], 0.0
    for place in range(1, 40):
        # What is read to predict `place` ends at the one before; the first input of a document is the id before it.
        start = max((place - 1) // BLOCK * BLOCK, *(first - 1 for first in offsets[:-1] if first <= place))
        with torch.no_grad():
            nats -= float(model(torch.tensor([ids[start:place]]))[0, -1].log_softmax(-1)[ids[place]])
    report = evaluate(model, evaluation_batches(BlockSequences(shards, BLOCK, document_mask=True), 2), text_bytes=0)
    assert report.tokens == 39
    assert report.nats == pytest.approx(nats, rel=1e-6)


def test_batch_size_changes_nothing(model: TransformerLM) -> None:
    """Any batch size gives the same sum and the same count."""
    shards = _shards(200)
    reports = [
        evaluate(model, evaluation_batches(BlockSequences(shards, BLOCK), size), text_bytes=9)
        for size in (1, 3, 13, 100)
    ]
    assert {report.tokens for report in reports} == {199}
    assert all(report.nats == pytest.approx(reports[0].nats, rel=1e-6) for report in reports)


def test_bits_per_byte() -> None:
    """Bits per byte are nats over ln 2 over the bytes; unknown where the bytes are."""
    report = EvalReport(nats=math.log(2) * 800, tokens=300, text_bytes=400)
    assert report.bits_per_byte == pytest.approx(2.0)
    assert report.loss == pytest.approx(math.log(2) * 800 / 300)
    assert EvalReport(1.0, 1, 0).bits_per_byte is None
    assert EvalReport(800.0, 1, 1).perplexity == math.inf
    assert set(report.values()) == {"loss", "perplexity", "bits_per_byte", "tokens", "text_bytes"}


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_weights_stay(model: TransformerLM, training: bool) -> None:
    """The model is measured without dropout and left in the mode it was in, its weights and gradients untouched."""
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shards = _shards(50)
    first = evaluate(model, evaluation_batches(BlockSequences(shards, BLOCK), 4), text_bytes=0)
    assert first == evaluate(model, evaluation_batches(BlockSequences(shards, BLOCK), 4), text_bytes=0)
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mode_comes_back_after_a_failure(model: TransformerLM) -> None:
    """An error in the middle leaves the model in training mode."""

    def broken() -> Iterable[Batch]:
        yield from evaluation_batches(BlockSequences(_shards(20), BLOCK), 1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        evaluate(model, broken(), text_bytes=0)
    assert model.training


def test_progress_counts_tokens(model: TransformerLM) -> None:
    """Progress is told the tokens measured so far, up to all of them."""
    seen: list[int] = []
    evaluate(model, evaluation_batches(BlockSequences(_shards(100), BLOCK), 2), text_bytes=0, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 99


def test_nothing_to_measure(model: TransformerLM) -> None:
    """Without a batch the report says zero tokens."""
    report = evaluate(model, [], text_bytes=0)
    assert (report.tokens, report.nats) == (0, 0.0)
