"""configuration and plan -> learning rate, stops, and how often what is done."""

import math
import sys
from functools import partial

from llmt.config.run import TrainConfig
from llmt.system.plan import RunPlan
from llmt.training.limits import Cadence, Limits, steps_of_epochs
from llmt.training.schedule import Schedule


def schedule_of(config: TrainConfig, plan: RunPlan, warmup: int) -> Schedule:
    """The learning rate of a run that warms up over so many steps."""
    training = config.training
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
    by_tokens = samples is None and training.max_steps is None and training.max_tokens is not None
    if training.max_steps is not None:
        stops.append(training.max_steps)
    if training.num_train_epochs is not None and samples is not None:
        together = plan.micro_batch * plan.accumulation * world_size
        stops.append(steps_of_epochs(training.num_train_epochs, samples, together))
    # A run that only the clock ends may make few of its steps: then the clock counts here too.
    named = (training.max_steps, training.num_train_epochs, training.max_tokens)
    cadence = partial(_cadence, total=total, seconds=training.max_time if named == (None, None, None) else None)
    return Limits(
        # A run by tokens ends when they are reached, though short blocks may need a step more.
        max_steps=min(stops, default=sys.maxsize if by_tokens else 2 * total + 1),
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
        by_tokens=by_tokens,
        async_save=training.async_save,
    )


def _cadence(strategy: str, steps: int | None, times: int, *, total: int, seconds: float | None) -> Cadence:
    """Every so many steps, or so many times a run of `total` steps, or one of `seconds`."""
    if strategy != "steps":
        return Cadence(epochs=strategy == "epoch")
    if steps is None and seconds is not None:
        return Cadence(seconds=seconds / times)
    return Cadence(steps or max(math.ceil(total / times), 1))
