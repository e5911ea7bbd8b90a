"""The objective is the next token, and a loss is a sum and a count."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmt.config.model import ModelConfig
from llmt.config.training import TrainingConfig
from llmt.data.batch import IGNORED, Batch
from llmt.data.loader import BatchLoader, evaluation_batches
from llmt.data.mixture import TrainingSet
from llmt.data.sequences import BlockSequences
from llmt.data.shards import ShardSet
from llmt.evaluation.perplexity import evaluate
from llmt.models.base import BaseLanguageModel
from llmt.models.transformer import TransformerLM
from llmt.training.limits import Limits
from llmt.training.loop import TrainingLoop
from llmt.training.optim import Optimizer
from llmt.training.schedule import Schedule

V = 13
LIMITS = Limits(
    max_steps=60, max_tokens=None, max_seconds=None, micro_batch=8, accumulation=1,
    max_grad_norm=1.0,
)  # fmt: skip


class Nowhere:
    """Keeps nothing."""

    def save(self, state: Any, optimizer: Any, average: Any) -> None:
        pass

    def settle(self) -> Any:
        return None

    def close(self) -> None:
        pass


class TableModel(BaseLanguageModel):
    """Logits from a table: row i holds those of the token after i."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.vocab_size, self.context_length = len(table), 64
        self.table = nn.Parameter(table)

    def hidden_states(self, input_ids: Tensor, cache: Any = None) -> Tensor:
        return nn.functional.one_hot(input_ids, self.vocab_size).float()

    def output_weight(self) -> Tensor:
        return self.table.T

    def new_cache(self, batch_size: int, length: int) -> None:
        return None

    def model_config(self) -> dict[str, Any]:
        return {}


def _periodic(tokens: int = 700) -> ShardSet:
    """0 1 2 ... 12 0 1 ...: the next token is always the one after."""
    return ShardSet((np.arange(tokens) % V).astype("<u2"), np.array([1, tokens], dtype="<u8"), tokens, V, 0)


def _blocks(shards: ShardSet, block: int, *, document_mask: bool = False) -> TrainingSet:
    return TrainingSet((BlockSequences(shards, block, document_mask=document_mask),))


def _network(seed: int = 1) -> TransformerLM:
    shape = ModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    model = TransformerLM(shape, V, 32)
    model.initialize(seed)
    return model


def _trainer(model: BaseLanguageModel, shards: ShardSet, block: int = 32, **limits: Any) -> TrainingLoop:
    chosen = dataclasses.replace(LIMITS, **limits)
    optimizer = Optimizer(model, TrainingConfig(optimizer="adamw", weight_decay=0.0, learning_rate=0.01))
    loader = BatchLoader(_blocks(shards, block), chosen.micro_batch, 0)
    return TrainingLoop(model, optimizer, loader, Schedule("constant", 1, 0), chosen, Nowhere(), 0)


def test_a_model_that_knows_the_next_token_has_no_loss() -> None:
    """With the loader's labels the table of next tokens loses nothing, the table of the same tokens a lot."""
    batches = list(evaluation_batches(BlockSequences(_periodic(), 32), 4))
    knows, copies = TableModel(50 * torch.eye(V).roll(1, 1)), TableModel(50 * torch.eye(V))
    assert evaluate(knows, batches, text_bytes=0).loss < 1e-6
    assert evaluate(copies, batches, text_bytes=0).loss > 40


def test_the_same_model_on_unshifted_labels_loses_a_lot() -> None:
    """Labels equal to the inputs tell the two tables apart the other way round: the oracle sees a missing shift."""
    wrong = [
        Batch(b.input_ids, b.input_ids, b.input_ids.numel())
        for b in evaluation_batches(BlockSequences(_periodic(), 32), 4)
    ]
    knows, copies = TableModel(50 * torch.eye(V).roll(1, 1)), TableModel(50 * torch.eye(V))
    assert evaluate(knows, wrong, text_bytes=0).loss > 40
    assert evaluate(copies, wrong, text_bytes=0).loss < 1e-6


def test_training_learns_the_next_token_and_not_the_same() -> None:
    """After 60 steps on a periodic text over 99 % of the next tokens are right and no input is copied."""
    model = _network()
    list(_trainer(model, _periodic()).run())
    right = copied = total = 0
    for batch in evaluation_batches(BlockSequences(_periodic(), 32), 8):
        counts = batch.labels != -100
        with torch.no_grad():
            said = model.eval()(batch.input_ids).argmax(-1)
        right += int((said == batch.labels)[counts].sum())
        copied += int((said == batch.input_ids)[counts].sum())
        total += batch.tokens
    assert right / total > 0.99
    assert copied / total < 1 / V


def test_one_batch_can_be_learnt_by_heart() -> None:
    """Random tokens seen again and again end at a loss below 0.01."""
    ids = np.random.default_rng(0).integers(0, V, 8 * 16 + 1).astype("<u2")
    ids[0:-1:16] = np.arange(8)  # rows that begin alike could not be told apart
    shards = ShardSet(ids, np.array([1, len(ids)], dtype="<u8"), 1, V, 0)
    reports = list(_trainer(_network(), shards, block=16, max_steps=150).run())
    assert reports[0].loss > 2
    assert reports[-1].loss < 0.01


class _Ragged:
    """Eight samples of different lengths, in order, in batches of any size."""

    def __init__(self, batch_size: int) -> None:
        rows = np.random.default_rng(5)
        lengths = (17, 3, 9, 2, 17, 5, 12, 4)
        self._runs = [rows.integers(0, V, length).astype("<u2") for length in lengths]
        self._size = batch_size
        self.tokens = sum(lengths) - 8

    def epoch(self, samples: int) -> float:
        return samples / 8

    def position(self) -> None:
        return None

    def go_to(self, position: Any) -> None:
        assert position is None

    def batches(self, start_sample: int = 0) -> Iterator[Batch]:
        for first in range(start_sample, 8, self._size):
            runs = self._runs[first : first + self._size]
            input_ids = torch.zeros((len(runs), 16), dtype=torch.int64)
            labels = torch.full((len(runs), 16), IGNORED)
            for row, run in enumerate(runs):
                ids = torch.from_numpy(run.astype(np.int64))
                input_ids[row, : len(run) - 1], labels[row, : len(run) - 1] = ids[:-1], ids[1:]
            yield Batch(input_ids, labels, sum(len(run) - 1 for run in runs))


def _accumulated(micro: int) -> tuple[float, float, list[Tensor]]:
    """Loss, gradient norm and gradients of one step over the eight samples, `micro` at a time."""
    model, loader = _network(3), _Ragged(micro)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.shape[0]))
    trainer = _trainer(model, _periodic(), max_steps=1, micro_batch=micro, accumulation=8 // micro, max_grad_norm=0.0)
    trainer.loader = loader
    gradients: list[Tensor] = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (gradients.extend(g.clone() for g in trainer.optimizer.gradients()), step())[1]  # type: ignore[method-assign]
    report = next(iter(trainer.run()))
    assert report.tokens == loader.tokens
    return report.loss, report.grad_norm, gradients


def test_accumulated_equals_whole() -> None:
    """1x8, 2x4, 4x2 and 8x1 ragged samples have the loss, norm and gradients of one another, to fp32 rounding."""
    loss, norm, whole = _accumulated(8)
    assert whole
    for micro in (1, 2, 4):
        other_loss, other_norm, parts = _accumulated(micro)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert other_norm == pytest.approx(norm, rel=1e-5)
        for a, b in zip(parts, whole, strict=True):
            assert float((a - b).abs().max()) <= 2e-6 * max(float(b.abs().max()), 1e-3)


def test_loss_is_the_mean_over_the_tokens() -> None:
    """The reported loss is that of all labels of the step together, whatever their number in each batch."""
    loader, model = _Ragged(8), _network(3)
    batch = next(loader.batches())
    trainer = _trainer(model, _periodic(), max_steps=1, micro_batch=2, accumulation=4)
    expected = model.loss(batch.input_ids, batch.labels).mean()
    trainer.loader = _Ragged(2)
    assert next(iter(trainer.run())).loss == pytest.approx(expected, rel=1e-6)


class _Untrained(BatchLoader):
    """Batches of 8 in which those that begin at certain samples have nothing to predict."""

    def __init__(self, empty: set[int]) -> None:
        super().__init__(_blocks(_periodic(), 32), 8, 0)
        self._empty = empty

    def batch_at(self, start_sample: int) -> Batch:
        batch = super().batch_at(start_sample)
        if start_sample not in self._empty:
            return batch
        return Batch(batch.input_ids, torch.full_like(batch.labels, -100), 0)


def _with_untrained(empty: set[int], **limits: Any) -> TrainingLoop:
    trainer = _trainer(_network(), _periodic(), **limits)
    trainer.optimizer = Optimizer(trainer.model, TrainingConfig(optimizer="muon", weight_decay=0.1))
    trainer.loader = _Untrained(empty)
    return trainer


def test_a_step_without_a_trained_token_moves_nothing() -> None:
    """No momentum, no decay, no token counted, a loss of 0; first or later, and the run goes on."""
    trainer = _with_untrained({0, 8, 32}, max_steps=6)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    tokens = []
    for report in trainer.run():
        now = [p.detach().clone() for p in trainer.model.parameters()]
        same = [torch.equal(a, b) for a, b in zip(now, before, strict=True)]
        if report.step in (1, 2, 5):
            assert all(same)
            assert (report.loss, report.grad_norm) == (0.0, 0.0)
        else:
            assert not all(same)
            assert report.loss > 0.1
        before = now
        tokens.append(report.tokens)
    full, short = 8 * 32, (700 - 1) % 32
    assert tokens[:2] == [0, 0]
    assert tokens[4] == tokens[3] > 0
    assert tokens[-1] >= 3 * full - (32 - short)


def test_a_batch_without_a_trained_token_adds_nothing() -> None:
    """A step over such a batch and another has loss, norm and weights of a step over the other alone."""
    both, one = _with_untrained({8}, max_steps=1, accumulation=2), _with_untrained(set(), max_steps=1)
    first, second = next(iter(both.run())), next(iter(one.run()))
    assert (first.loss, first.grad_norm, first.tokens) == (second.loss, second.grad_norm, second.tokens)
    assert all(torch.equal(a, b) for a, b in zip(both.model.parameters(), one.model.parameters(), strict=True))


def test_training_reads_documents_apart() -> None:
    """With a document mask the loss of a step is that of the model under the positions of its batch."""
    shards = dataclasses.replace(_periodic(), offsets=np.arange(1, 701, 11, dtype="<u8"))
    losses = []
    for apart in (True, False):
        model = _network(3)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
        trainer = _trainer(model, shards, max_steps=1)
        trainer.loader = BatchLoader(_blocks(shards, 32, document_mask=apart), 8, 0)
        batch = trainer.loader.batch_at(0)
        assert (batch.position_ids is not None) is apart
        expected = model.loss(batch.input_ids, batch.labels, batch.position_ids).mean()
        losses.append(next(iter(trainer.run())).loss)
        assert losses[-1] == pytest.approx(expected, rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("limit", [0.0, 0.05, 1e6])
def test_clipping(limit: float) -> None:
    """Gradients longer than the limit are scaled to it, shorter ones left alone; the norm reported is from before."""
    model = _network()
    trainer = _trainer(model, _periodic(), max_steps=1, max_grad_norm=limit)
    found: list[float] = []
    step = trainer.optimizer.step

    def watch() -> None:
        found.append(float(torch.nn.utils.get_total_norm(trainer.optimizer.gradients())))
        step()

    trainer.optimizer.step = watch  # type: ignore[method-assign]
    report = next(iter(trainer.run()))
    assert report.grad_norm > 0.05
    assert found[0] == pytest.approx(limit if 0 < limit < report.grad_norm else report.grad_norm, rel=1e-4)
