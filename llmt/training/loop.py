"""The loop: batches -> gradients -> weights, one `StepReport` a step."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from llmt.data.batch import Batch
from llmt.data.loader import BatchLoader
from llmt.errors import DivergedError, Interrupted, StorageError
from llmt.models.base import BaseLanguageModel
from llmt.system.allocator import KeptMemory
from llmt.system.memory import process_memory
from llmt.training.average import Average
from llmt.training.divergence import watch_loss
from llmt.training.limits import Limits
from llmt.training.micro_batch import memory_errors
from llmt.training.objective import NextToken, Objective, Report
from llmt.training.optim import Optimizer
from llmt.training.report import StepReport
from llmt.training.runtime import Runtime
from llmt.training.sanity import Guard, check_finite, check_moved, check_weights
from llmt.training.schedule import Schedule
from llmt.training.signals import signal_name
from llmt.training.state import RunState, Written
from llmt.training.step import FIRST_SCALE, Gradients, Stepper, next_scale

T = TypeVar("T")

MOST_FAILED_SAVES = 3
"""Checkpoints in a row that the disk may refuse before the run gives up."""


class Keeper(Protocol):
    """Where a run is kept."""

    def save(self, state: RunState, optimizer: Optimizer, average: Average | None) -> None:
        """Begin a checkpoint: `settle` has to be called before the next one."""
        ...

    def settle(self) -> Written:
        """Finish what was begun, so that it is whole. Where this fails there is nothing new."""
        ...

    def close(self) -> None:
        """Wait until nothing is written any more."""
        ...

    def log_validation(self, step: int, evaluation: Report) -> str:
        """Write down a validation that was made up for; return what the disk refused."""
        ...

    def dump(self, step: int, window: list[Batch], facts: dict[str, Any]) -> Path:
        """Keep the batches of a step that went wrong; return their directory."""
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


@dataclass(frozen=True)
class Validation:
    """Held-out text.

    Attributes:
        batches: Gives this process's batches of it.
        text_bytes: UTF-8 bytes behind all of them; 0 where they are only a part.
    """

    batches: Callable[[], Iterator[Batch]]
    text_bytes: int = 0


class TrainingLoop:
    """Moves a model from the state it is in to the end of its run.

    Args:
        model: On its device, in its compute precision.
        optimizer: Over the model's trainable parameters.
        loader: This process's training batches.
        schedule: Learning rate by step.
        limits: When to stop, validate and save.
        keeper: Where checkpoints go.
        seed: Start of the random numbers of dropout.
        runtime: The processes that share a step; None for one.

    Attributes:
        state: Where the run is.
        objective: What is learnt.
        average: Moving average of the weights; where there is one, it is validated and kept as the model.
        validation: Held-out text; None where there is none.
        sampler: Writes a sample, piece by piece; None where none is wanted.
        go_back: Puts everything where the last checkpoint left it, and tells which damaged ones it passed over, None
            where there was none; None where a run that diverges is not tried again.
        guard: Watches the steps, above all the first; None watches nothing.
        kept_memory: Gives back what steps of unlike shapes leave behind; None where nothing is kept.
        fingerprint: What the run depends on; kept in every checkpoint.
        notes: Why a resumed run is not the same bit for bit, one phrase each.
        stop_signal: Number of the signal that asked to stop; 0 before one did.
        unsaid: What the next report will say, one sentence each; at the end of a run, what none said.
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
        runtime: Runtime | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.schedule = schedule
        self.limits = limits
        self.keeper = keeper
        self.runtime = runtime or Runtime()
        self.state = RunState()
        self.objective: Objective = NextToken()
        self.average: Average | None = None
        self.validation: Validation | None = None
        self.sampler: Callable[[], Iterator[str]] | None = None
        self.go_back: Callable[[], list[str] | None] | None = None
        self.guard: Guard | None = None
        self.kept_memory: KeptMemory | None = None
        self.fingerprint: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self.seed = seed
        self.stop_signal = 0
        self.unsaid: tuple[str, ...] = ()
        self._saved_step = 0
        self._begun: int | None = None
        self._failed_saves = 0
        self._bests: list[tuple[int, float]] = []
        self._went_back = ""

    def request_stop(self, signum: int) -> None:
        """Finish the step under way, save, and raise `Interrupted` from `run`."""
        self.stop_signal = signum

    def scale_loss(self) -> None:
        """Multiply the loss, as fp16 needs it."""
        if self.state.loss_scale is None:
            self.state = self.state.advance(loss_scale=FIRST_SCALE)

    def resume(self, state: RunState) -> None:
        """Go on from `state`; weights and optimizer hold what belongs to it already."""
        self.state = state
        self._saved_step = state.step
        if state.best_step is not None and state.best_loss is not None:
            self._bests = [(state.best_step, state.best_loss)]
        self.loader.go_to(state.stream)

    def forget_losses(self) -> None:
        """Compare what comes with nothing that was measured so far."""
        self.state = self.state.advance(best_step=None, best_loss=None, stale=0, losses=(), high=0)
        self._bests = []

    @property
    def samples_per_step(self) -> int:
        """Sequences of a step, over all processes."""
        return self.limits.micro_batch * self.limits.accumulation * self.runtime.world_size

    @property
    def stopped_early(self) -> bool:
        """Validation has not become better for as long as the run was told to wait."""
        return self.limits.patience is not None and self.state.stale >= self.limits.patience

    @property
    def epoch(self) -> float:
        """Passes over the text so far."""
        return self.loader.epoch(self.state.step * self.samples_per_step)

    def run(self) -> Iterator[StepReport]:
        """Train to the end, one report a step.

        Raises:
            DivergedError: A number is not finite, or nothing would be learnt.
            Interrupted: A stop was requested; a checkpoint stands.
            OutOfMemoryError: A step does not fit.
            StorageError: Checkpoints cannot be written.
        """
        if self.guard is not None:
            self.guard.begin()
        stepper = Stepper(self.model, self.optimizer, self.seed, self.runtime, self.objective)
        started, earlier = time.monotonic(), self.state.seconds
        batches = self.loader.batches(self.state.step * self.samples_per_step)
        self.model.train()
        try:
            if self.state.owes_validation and self.validation is not None and self.limits.validates:
                self._make_up()
            while not self._finished():
                begun, before = time.monotonic(), (self.epoch, self.state.seconds)
                window = [next(batches) for _ in range(self.limits.accumulation)]
                try:
                    with memory_errors(self.state.step + 1, self.limits):
                        report = self._step(stepper, window) | {"before": before}
                        now = time.monotonic()
                        seconds = self.runtime.from_main(earlier + now - started)
                        self.state = self.state.advance(seconds=seconds)
                        report["tokens_per_second"] = report.pop("trained") / max(now - begun, 1e-9)
                        completed = self._complete(report, now - started)
                except DivergedError as error:
                    self._try_again(error)
                    if isinstance(batches, Generator):
                        batches.close()
                    batches = self.loader.batches(self.state.step * self.samples_per_step)
                    continue
                yield completed
                self._heed_stop()
            self._settle(required=True)
        finally:
            self.keeper.close()
            if isinstance(batches, Generator):
                batches.close()

    def _make_up(self) -> None:
        """Validate a step whose validation a stop had cut off; its checkpoint says what was found, as without it."""
        evaluation, _ = self._validate()
        self._heed_stop()
        if evaluation is None:
            return
        step, found = self.state.step, evaluation
        _, problems = self._save(required=True)
        refused = self.runtime.on_main(lambda: self.keeper.log_validation(step, found))
        made_up = f"the validation of step {step} was made up for: {found.loss:.4f}"
        self.unsaid = (made_up, *problems, *([refused] if refused else []))

    def _try_again(self, error: DivergedError) -> None:
        """Go back to the last checkpoint, once and where that is wanted: chance does not strike twice.

        Raises:
            DivergedError: It is not to be tried again.
        """
        if self.go_back is None:
            raise error
        if self._went_back:
            raise DivergedError(f"{error.message}; before, {self._went_back}", error.hint) from None
        _, problems = self._settle(required=False)
        damaged = self.go_back() if self._saved_step else None
        if damaged is None:
            raise error
        self._went_back = error.message
        self.unsaid = (
            *problems,
            *damaged,
            f"{error.message}; went back to step {self.state.step} to try once more",
        )

    def _finished(self) -> bool:
        limits, state = self.limits, self.state
        return (
            state.step >= limits.max_steps
            or (limits.max_tokens is not None and state.tokens >= limits.max_tokens)
            or (limits.max_seconds is not None and state.seconds >= limits.max_seconds)
            or self.stopped_early
        )

    def _step(self, stepper: Stepper, window: list[Batch]) -> dict[str, Any]:
        """One optimizer step over a window of batches; its numbers.

        A window in which no token is trained moves no weight: without gradients there is neither momentum nor
        decay. Its loss is 0, of 0 tokens.
        """
        state = self.state
        here = sum(batch.tokens for batch in window), sum(map(self.objective.count, window))
        tokens, count = (round(number) for number in self.runtime.total(*here))
        if self.guard is not None:
            self.guard.before(window, tokens)
        found = stepper.gradients(window, state.step, count, state.loss_scale)
        loss = found.summed / max(count, 1)
        try:
            state, warnings = self._judge_gradients(found, loss, tokens)
            rate = self._move(found)
            check_moved(self.state.step + 1, self.optimizer)
        except DivergedError as error:
            raise self._dumped(error, window, found) from None
        scale, steps = next_scale(found.scale, state.loss_scale, state.scaled_steps)
        self.state = state.advance(
            step=state.step + 1, tokens=state.tokens + tokens, loss_scale=scale, scaled_steps=steps
        )
        if self.average is not None:
            self.average.update(state.step + 1)
        if self.guard is not None and tokens:
            warnings += self.guard.after(rate, loss, state.step + 1)
        return {"loss": loss, "learning_rate": rate, "grad_norm": found.norm, "trained": tokens,
                "warnings": warnings}  # fmt: skip

    def _judge_gradients(self, found: Gradients, loss: float, tokens: int) -> tuple[RunState, tuple[str, ...]]:
        """The state with the loss taken in, and what is unusual about it, before anything moves."""
        step, state, warning = self.state.step + 1, self.state, ""
        check_finite(step, found.summed, found.norm, self.optimizer)
        if tokens:
            state, warning = watch_loss(state, loss, found.norm)
            if self.guard is not None:
                self.guard.gradients()
        if warning and self.limits.stop_on_divergence:
            raise DivergedError(f"{warning} at step {step}", "lower training.learning_rate")
        return state, (f"step {step}: {warning}",) if warning else ()

    def _move(self, found: Gradients) -> float:
        """Clip and step; the rate of the last group."""
        if 0 < self.limits.max_grad_norm < found.norm:
            masters = [weight.master for weight in self.optimizer.weights]
            torch.nn.utils.clip_grads_with_norm_(masters, self.limits.max_grad_norm, torch.tensor(found.norm))
        factor = self.schedule.factor(self._progress())
        self.optimizer.set_rate(factor)
        self.optimizer.step()
        return self.optimizer.groups[-1].peak * factor

    def _progress(self) -> float:
        """Steps finished, or as many as the clock says where the run is limited by time and that is more.

        Of a stream that ends by tokens nobody knows how many steps they take: their share is that of the schedule.
        """
        state, limits, total = self.state, self.limits, self.schedule.total_steps
        done: float = state.step
        if limits.by_tokens and limits.max_tokens is not None:
            done = total * min(state.tokens / limits.max_tokens, 1.0)
        if limits.max_seconds is None:
            return done
        return max(done, total * min(state.seconds / limits.max_seconds, 1.0))

    def _dumped(self, error: DivergedError, window: list[Batch], found: Gradients) -> DivergedError:
        """The error, with where its batches were kept and which samples they are."""
        first = self.state.step * self.samples_per_step
        last = first + self.samples_per_step - 1
        facts = {"step": self.state.step + 1, "samples": [first, last],
                 "loss_sum": str(found.summed), "grad_norm": str(found.norm), "problem": error.message}  # fmt: skip
        if isinstance(self.loader, BatchLoader):  # of several processes, what all of them trained on
            size = self.limits.micro_batch
            window = [self.loader.batch_at(number) for number in range(first, last + 1, size)]
        where = f"; samples {first} to {last}"
        try:
            kept = self.runtime.on_main(lambda: self.keeper.dump(self.state.step + 1, window, facts))
        except StorageError as refused:
            return DivergedError(f"{error.message}{where} could not be kept: {refused.message}", error.hint)
        return DivergedError(error.message + where + (f" are kept in {kept}" if kept else ""), error.hint)

    def _complete(self, report: dict[str, Any], seconds: float) -> StepReport:
        """Validate, sample and save where that is due, and say what the step did."""
        limits, (before, clock), now = self.limits, report.pop("before"), self.epoch
        step, last, moment = self.state.step, self._finished(), ((before, now), (clock, self.state.seconds))
        evaluation, best = None, False
        if self.validation is not None and limits.validates and (last or limits.evaluate.due(step, *moment)):
            evaluation, best = self._validate()
            last = last or self.stopped_early
        sample = None
        if self.sampler is not None and limits.sample.due(step, *moment):
            sample = self._sample(self.sampler)
        checkpoint = None
        report["warnings"] += self.unsaid
        self.unsaid = ()
        if best or last or limits.save.due(step, *moment):
            checkpoint, refused = self._save(required=last)
            report["warnings"] += refused
        held = process_memory()
        if self.kept_memory is not None:
            self.kept_memory.after_step(held)
        return StepReport(
            step=step, epoch=now, tokens=self.state.tokens, seconds=seconds, memory=held,
            evaluation=evaluation, checkpoint=checkpoint, is_best=best, sample=sample, **report,
        )  # fmt: skip

    def _validate(self) -> tuple[Report | None, bool]:
        """Measure and take in what was found; where a stop comes in the middle, a resume measures first."""
        evaluation = self.evaluate()
        self.state = self.state.advance(owes_validation=evaluation is None)
        return evaluation, evaluation is not None and self._judge(evaluation.loss)

    def _judge(self, loss: float) -> bool:
        """Take in a validation loss; whether it is the best so far."""
        state = self.state
        gained = state.best_loss is None or loss < state.best_loss - self.limits.threshold
        best = state.best_loss is None or loss < state.best_loss
        self.state = state.advance(stale=0 if gained else state.stale + 1)
        if best:
            self._bests.append((state.step, loss))
            self.state = self.state.advance(best_step=state.step, best_loss=loss)
        return best

    def evaluate(self) -> Report | None:
        """Measure the model as it stands on the held-out batches; None where a stop was requested meanwhile.

        Compiled blocks run eagerly meanwhile.
        """
        validation = self.validation
        assert validation is not None
        with self._averaged(), torch.compiler.set_stance("force_eager"):
            batches = self._until_stopped(validation.batches())
            own = self.objective.measure(self.model, batches, validation.text_bytes)
        found = own.over(self.runtime.total)
        if self.runtime.highest(self.stop_signal):
            return None
        check_finite(self.state.step, found.loss, 0.0, self.optimizer)
        return found

    def _sample(self, sampler: Callable[[], Iterator[str]]) -> str | None:
        def write() -> str:
            with self._averaged(), torch.compiler.set_stance("force_eager"):
                self.model.eval()
                try:
                    return "".join(self._until_stopped(sampler()))
                finally:
                    self.model.train()

        return self.runtime.on_main(write)

    def _until_stopped(self, items: Iterator[T]) -> Iterator[T]:
        for item in items:
            if self.stop_signal:
                return
            yield item

    def _averaged(self) -> Any:
        return nullcontext() if self.average is None else self.average.in_place()

    def _save(self, *, required: bool) -> tuple[Path | None, tuple[str, ...]]:
        """Write a checkpoint, or begin to; what was written, and what the disk refused.

        Raises:
            StorageError: It is required, or too many in a row were refused.
        """
        check_weights(self.state.step, self.optimizer)
        path, problems = self._settle(required=False)
        state = self.state.advance(fingerprint=self.fingerprint, stream=self.loader.position())
        self.runtime.on_main(lambda: self.keeper.save(state, self.optimizer, self.average))
        self._begun = state.step
        if required or not self.limits.async_save:
            path, more = self._settle(required=required)
            problems += more
        return path, problems

    def _settle(self, *, required: bool) -> tuple[Path | None, tuple[str, ...]]:
        """Wait until the checkpoint that was begun is written; the next one is tried where the disk refuses it."""
        if self._begun is None:
            return None, ()
        step, self._begun = self._begun, None
        try:
            written = self.runtime.on_main(self.keeper.settle)
        except StorageError as error:
            self._failed_saves += 1
            if required or self._failed_saves >= MOST_FAILED_SAVES:
                raise
            self._bests = [best for best in self._bests if best[0] != step]
            best_step, best_loss = self._bests[-1] if self._bests else (None, None)
            self.state = self.state.advance(best_step=best_step, best_loss=best_loss)
            kept = f"that of step {self._saved_step} is kept" if self._saved_step else "there is none yet"
            return None, (f"step {step}: {error.message}; {kept}, and the next one is tried when it is due",)
        self._failed_saves, self._saved_step = 0, step
        if written is None:
            return None, ()
        return written.path, (f"step {step}: {written.problem}",) if written.problem else ()

    def _heed_stop(self) -> None:
        signum = self.runtime.highest(self.stop_signal)
        if not signum:
            return
        self._settle(required=False)
        if self._saved_step != self.state.step:
            self._save(required=True)
        raise Interrupted(f"stopped by {signal_name(signum)} at step {self.state.step}, saved", "", signum)
