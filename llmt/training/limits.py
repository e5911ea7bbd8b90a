"""When a run stops, and what it does on the way."""

import math
from dataclasses import dataclass

from llmt.errors import UsageError


@dataclass(frozen=True)
class Cadence:
    """How often something is done.

    Attributes:
        steps: After every this many steps; 0 never.
        epochs: After each pass over the text instead.
        seconds: Each time that so much more wall time has passed; 0 never.
    """

    steps: int = 0
    epochs: bool = False
    seconds: float = 0.0

    def due(self, step: int, passes: tuple[float, float], clock: tuple[float, float] = (0.0, 0.0)) -> bool:
        """Whether it is done after a step.

        Args:
            step: Its number, from 1.
            passes: Passes over the text before and after it.
            clock: Seconds of training before and after it.
        """
        if self.epochs:
            return math.floor(passes[1] + 1e-9) > math.floor(passes[0] + 1e-9)
        if self.seconds and clock[1] // self.seconds > clock[0] // self.seconds:
            return True
        return self.steps > 0 and step % self.steps == 0

    @property
    def ever(self) -> bool:
        """Whether it is done at all."""
        return self.epochs or self.steps > 0 or self.seconds > 0


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
        by_tokens: The learning rate follows `max_tokens`, since the steps that they take are not known.
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
    by_tokens: bool = False
    async_save: bool = False

    @property
    def validates(self) -> bool:
        """Whether held-out text is measured at all."""
        return self.evaluate.ever


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
        stops.append(steps_of_epochs(epochs or 1.0, samples, samples_per_step))
    return max(min(stops), 1)


def steps_of_epochs(epochs: float, samples: int, samples_per_step: int) -> int:
    """Steps that cover so many passes over the text; what rounding adds to a product is not a step more."""
    return math.ceil(epochs * samples / samples_per_step - 1e-9)
