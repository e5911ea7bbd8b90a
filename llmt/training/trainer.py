"""The loop: batches -> gradients -> weights, one `StepReport` a step."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llmt.data.batch import Batch
from llmt.errors import Interrupted, UsageError
from llmt.evaluation.perplexity import EvalReport, evaluate
from llmt.models.base import BaseLanguageModel
from llmt.system.memory import process_memory
from llmt.training.optim import Optimizer
from llmt.training.report import StepReport
from llmt.training.sanity import WATCHED_RATE, ChangeWatch, check_coverage, check_finite, check_weights
from llmt.training.schedule import Schedule
from llmt.training.state import RunState


@dataclass(frozen=True)
class Limits:
    """When a run stops and what it does on the way. All are counted over the whole run, resumes included.

    Attributes:
        max_steps: Optimizer steps.
        max_tokens: Stop after the step that reaches this many trained tokens.
        max_seconds: Stop after this much wall time.
        micro_batch: Sequences of one batch.
        accumulation: Batches summed into one step.
        eval_steps: Validate every this many steps; 0 never.
        save_steps: Write a checkpoint every this many steps.
        max_grad_norm: Clip the gradient norm to this; 0 never.
    """

    max_steps: int
    max_tokens: int | None
    max_seconds: float | None
    micro_batch: int
    accumulation: int
    eval_steps: int
    save_steps: int
    max_grad_norm: float


class Keeper(Protocol):
    """Where a run is kept."""

    def save(self, state: RunState, optimizer: Optimizer) -> Path:
        """Write a checkpoint, whole or not at all; return its directory."""
        ...


class Loader(Protocol):
    """Where training batches come from."""

    def batches(self, start_sample: int = 0) -> Iterator[Batch]:
        """Batch after batch from a sample on, without end."""
        ...

    def epoch(self, samples: int) -> float:
        """Passes over the text after so many samples."""
        ...

    def position(self) -> dict[str, Any] | None:
        """Where the last batch ends, of text that is streamed."""
        ...

    def go_to(self, position: dict[str, Any] | None) -> None:
        """Go on from such a place."""
        ...


Validation = Callable[[], Iterator[Batch]]


class Trainer:
    """Moves a model from the state it is in to the end of its run.

    Args:
        model: On its device, in its compute precision.
        optimizer: Over the model's trainable parameters.
        loader: Training batches by sample number.
        schedule: Learning rate by step.
        limits: When to stop, validate and save.
        keeper: Where checkpoints go.
        seed: Start of the random numbers of dropout.

    Attributes:
        fingerprint: What the run depends on; kept in every checkpoint.
        notes: Why a resumed run is not the same bit for bit, one phrase each.
    """

    def __init__(
        self,
        model: BaseLanguageModel,
        optimizer: Optimizer,
        loader: Loader,
        schedule: Schedule,
        limits: Limits,
        keeper: Keeper,
        seed: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.schedule = schedule
        self.limits = limits
        self.keeper = keeper
        self.seed = seed
        self.state = RunState()
        self.validation: Validation | None = None
        self.validation_bytes = 0
        self.fingerprint: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self.stop_signal: int | None = None
        self._saved_step = 0

    def request_stop(self, signum: int) -> None:
        """Finish the step under way, save, and raise `Interrupted` from `run`."""
        self.stop_signal = signum

    def validate_with(self, batches: Validation, text_bytes: int) -> None:
        """Measure on these held-out batches; `text_bytes` is 0 where they are only a part."""
        self.validation = batches
        self.validation_bytes = text_bytes

    def resume(self, state: RunState) -> None:
        """Go on from `state`; weights and optimizer hold what belongs to it already."""
        self.state = state
        self._saved_step = state.step
        self.loader.go_to(state.stream)

    def run(self) -> Iterator[StepReport]:
        """Train to the end, one report a step.

        Raises:
            DivergedError: A number is not finite, or nothing would be learnt.
            Interrupted: A stop was requested; a checkpoint stands.
            StorageError: A checkpoint cannot be written.
        """
        check_coverage(self.model, self.optimizer)
        watch: ChangeWatch | None = ChangeWatch(self.model, self.optimizer)
        started, earlier = time.monotonic(), self.state.seconds
        batches = self.loader.batches(self.state.step * self._samples_per_step)
        self.model.train()
        try:
            while not self._finished():
                begun = time.monotonic()
                window = [next(batches) for _ in range(self.limits.accumulation)]
                loss, norm, rate = self._step(window)
                tokens = sum(batch.tokens for batch in window)
                if watch is not None and tokens and rate >= WATCHED_RATE and not watch.after_step():
                    watch = None
                now = time.monotonic()
                self.state = self.state.advance(
                    step=self.state.step + 1,
                    tokens=self.state.tokens + tokens,
                    seconds=earlier + now - started,
                )
                yield self._report(loss, norm, rate, tokens / max(now - begun, 1e-9), now - started)
                if self.stop_signal is not None:
                    self._stop(self.stop_signal)
        finally:
            if isinstance(batches, Generator):
                batches.close()

    @property
    def _samples_per_step(self) -> int:
        return self.limits.micro_batch * self.limits.accumulation

    def _finished(self) -> bool:
        limits, state = self.limits, self.state
        return (
            state.step >= limits.max_steps
            or (limits.max_tokens is not None and state.tokens >= limits.max_tokens)
            or (limits.max_seconds is not None and state.seconds >= limits.max_seconds)
        )

    def _step(self, window: list[Batch]) -> tuple[float, float, float]:
        """One optimizer step over a window of batches: mean loss, gradient norm, learning rate.

        A batch in which no token is trained is passed over. A window of nothing else moves no weight: without
        gradients there is neither momentum nor decay. Its loss is 0, of 0 tokens.
        """
        step = self.state.step
        tokens = sum(batch.tokens for batch in window)
        nats = 0.0
        for number, batch in enumerate(window):
            if not batch.tokens:
                continue
            torch.manual_seed(step_seed(self.seed, step, number))
            here = batch.to(self.model.device)
            loss = self.model.loss(here.input_ids, here.labels, here.position_ids)
            (loss.nats / tokens).backward()
            self.optimizer.accumulate()
            nats += float(loss.nats.detach())
        norm = float(torch.nn.utils.get_total_norm(self.optimizer.gradients()))
        check_finite(step + 1, nats, norm, self.optimizer)
        if 0 < self.limits.max_grad_norm < norm:
            masters = [w.master for w in self.optimizer.weights]
            torch.nn.utils.clip_grads_with_norm_(masters, self.limits.max_grad_norm, torch.tensor(norm))
        factor = self.schedule.factor(step)
        self.optimizer.set_rate(factor)
        self.optimizer.step()
        peak = self.optimizer.groups[-1].peak
        return nats / max(tokens, 1), norm, peak * factor

    def _report(self, loss: float, norm: float, rate: float, speed: float, seconds: float) -> StepReport:
        """Validate and save where that is due, and say what the step did."""
        evaluation, best = None, False
        last = self._finished()
        due = self.limits.eval_steps and self.state.step % self.limits.eval_steps == 0
        if self.validation is not None and (due or last):
            evaluation = self.evaluate()
            best = self.state.best_loss is None or evaluation.loss < self.state.best_loss
            if best:
                self.state = self.state.advance(best_step=self.state.step, best_loss=evaluation.loss)
        checkpoint = None
        if best or last or self.state.step % self.limits.save_steps == 0:
            checkpoint = self._save()
        return StepReport(
            step=self.state.step,
            epoch=self.loader.epoch(self.state.step * self._samples_per_step),
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=self.state.tokens,
            tokens_per_second=speed,
            seconds=seconds,
            memory=process_memory(),
            evaluation=evaluation,
            checkpoint=checkpoint,
            is_best=best,
        )

    def evaluate(self) -> EvalReport:
        """Measure the model as it stands on the held-out batches; compiled blocks run eagerly meanwhile."""
        assert self.validation is not None
        eager: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        with eager:
            report = evaluate(self.model, self.validation(), text_bytes=self.validation_bytes)
        check_finite(self.state.step, report.nats, 0.0, self.optimizer)
        return report

    def _save(self) -> Path:
        check_weights(self.state.step, self.optimizer)
        self._saved_step = self.state.step
        state = self.state.advance(fingerprint=self.fingerprint, stream=self.loader.position())
        return self.keeper.save(state, self.optimizer)

    def _stop(self, signum: int) -> None:
        if self._saved_step != self.state.step:
            self._save()
        raise Interrupted(f"stopped at step {self.state.step}, saved", "", signum)


def step_seed(seed: int, step: int, batch: int) -> int:
    """Seed of one forward pass, from a counter: SplitMix64 (https://doi.org/10.1145/2714064.2660195)."""
    mask = (1 << 64) - 1
    mixed = (seed * 0x9E3779B97F4A7C15 + (step << 20) + batch) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) & ((1 << 63) - 1)


def total_steps(
    *,
    samples_per_step: int,
    samples: int | None,
    max_steps: int | None,
    epochs: float | None,
    max_tokens: int | None,
    tokens_per_sample: float,
) -> int:
    """Steps until the first of the stops that count: steps, passes over the text, tokens.

    With none of them, one pass.

    Raises:
        UsageError: None of them tells, since the text is streamed and its length is not known.
    """
    stops = []
    if max_steps is not None:
        stops.append(max_steps)
    if max_tokens is not None:
        stops.append(math.ceil(max_tokens / (samples_per_step * tokens_per_sample)))
    if epochs is not None or not stops:
        if samples is None:
            raise UsageError("data.streaming: how long a stream is, is not known", "--max-steps or --max-tokens")
        stops.append(math.ceil((epochs or 1.0) * samples / samples_per_step))
    return max(min(stops), 1)
