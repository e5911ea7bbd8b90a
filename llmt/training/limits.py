"""When a run stops, and what it does on the way."""

import math
from dataclasses import dataclass

from llmt.config.run import TrainConfig
from llmt.errors import UsageError
from llmt.system.plan import RunPlan
from llmt.training.schedule import Schedule, warmup_steps


@dataclass(frozen=True)
class Cadence:
    """How often something is done.

    Attributes:
        steps: After every this many steps; 0 never.
        epochs: After each pass over the text instead.
    """

    steps: int = 0
    epochs: bool = False

    def due(self, step: int, before: float, now: float) -> bool:
        """Whether it is done after `step`, which went from `before` to `now` passes over the text."""
        if self.epochs:
            return math.floor(now + 1e-9) > math.floor(before + 1e-9)
        return self.steps > 0 and step % self.steps == 0


@dataclass(frozen=True)
class Limits:
    """When a run stops and what it does on the way. All are counted over the whole run, resumes included.

    Attributes:
        max_steps: Optimizer steps.
        max_tokens: Stop after the step that reaches this many trained tokens.
        max_seconds: Stop after this much wall time; the learning rate follows the clock where that is ahead.
        micro_batch: Sequences of one batch.
        accumulation: Batches that each process sums into one step.
        max_grad_norm: Clip the gradient norm to this; 0 never.
        evaluate: How often to validate; the last step always is, unless this never does.
        save: How often to write a checkpoint; the last step always is.
        sample: How often to write a sample of text.
        patience: Stop after this many validations in a row without a gain; None never.
        threshold: How much lower a loss has to be to count as a gain.
        stop_on_divergence: Stop where the loss explodes.
        async_save: Train on while a checkpoint is written.
    """

    max_steps: int
    max_tokens: int | None
    max_seconds: float | None
    micro_batch: int
    accumulation: int
    max_grad_norm: float
    evaluate: Cadence = Cadence()
    save: Cadence = Cadence()
    sample: Cadence = Cadence()
    patience: int | None = None
    threshold: float = 0.0
    stop_on_divergence: bool = False
    async_save: bool = False

    @property
    def validates(self) -> bool:
        """Whether held-out text is measured at all."""
        return self.evaluate.epochs or self.evaluate.steps > 0


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


def schedule_of(config: TrainConfig, plan: RunPlan) -> Schedule:
    """The learning rate of a run."""
    training = config.training
    warmup = warmup_steps(plan.total_steps, training.warmup_steps, training.warmup_ratio)
    return Schedule(
        training.lr_scheduler_type, plan.total_steps, warmup, training.min_lr_ratio, training.lr_power,
        training.lr_decay_ratio,
    )  # fmt: skip


def limits_of(config: TrainConfig, plan: RunPlan, samples: int | None, world_size: int) -> Limits:
    """The stops of a run, and how often it does what.

    Args:
        config: The run as asked.
        plan: The run as it will be done.
        samples: Sequences of one pass over the text; None where that is not known.
        world_size: Processes that share a step.
    """
    training, logging, total = config.training, config.logging, plan.total_steps
    stops = [total] if training.max_tokens is None else []
    if training.max_steps is not None:
        stops.append(training.max_steps)
    if training.num_train_epochs is not None and samples is not None:
        together = plan.micro_batch * plan.accumulation * world_size
        stops.append(math.ceil(training.num_train_epochs * samples / together))

    def cadence(strategy: str, steps: int | None, times: int) -> Cadence:
        if strategy == "epoch":
            return Cadence(epochs=True)
        return Cadence(steps or max(math.ceil(total / times), 1)) if strategy == "steps" else Cadence()

    return Limits(
        # A run by tokens ends when they are reached, though short blocks may need a step more.
        max_steps=min(stops, default=2 * total + 1),
        max_tokens=training.max_tokens,
        max_seconds=training.max_time,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        max_grad_norm=training.max_grad_norm,
        evaluate=cadence(training.eval_strategy, training.eval_steps, 10),
        save=cadence(training.save_strategy, training.save_steps, 5),
        sample=cadence(logging.sample_strategy, logging.sample_steps, 10),
        patience=training.early_stopping_patience,
        threshold=training.early_stopping_threshold,
        stop_on_divergence=training.stop_on_divergence,
        async_save=training.async_save,
    )
