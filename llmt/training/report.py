"""What a run yields while it works."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmt.training.objective import Report


_NOT_LOGGED = ("evaluation", "checkpoint", "is_best", "sample", "warnings")


@dataclass(frozen=True)
class StepReport:
    """One optimizer step.

    Attributes:
        step: Steps finished, this one included.
        epoch: Passes over the training text so far.
        loss: Mean nats for each trained token of the step, of preferences the mean loss of its pairs; 0 where none was
            trained.
        learning_rate: Rate of this step, that of the last group where they differ.
        grad_norm: Global norm before clipping.
        tokens: Trained tokens so far, over the whole run.
        tokens_per_second: Speed of this step.
        seconds: Wall time since the start of this process's training.
        memory: Resident bytes of the process.
        evaluation: Validation after this step, if there was one.
        checkpoint: Checkpoint that is whole since this step, if there is one.
        is_best: The validation is the best so far.
        sample: Text that the model wrote after this step, if it was asked to.
        warnings: What is unusual about the step, one sentence each.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    memory: int
    evaluation: "Report | None" = None
    checkpoint: Path | None = None
    is_best: bool = False
    sample: str | None = None
    warnings: tuple[str, ...] = ()

    def metrics(self) -> dict[str, Any]:
        """One line of `metrics.jsonl`."""
        values = {k: v for k, v in asdict(self).items() if k not in _NOT_LOGGED}
        return values | ({} if self.evaluation is None else evaluation_metrics(self.evaluation))


def evaluation_metrics(evaluation: "Report") -> dict[str, Any]:
    """What `metrics.jsonl` says of a validation."""
    return {f"eval_{name}": value for name, value in evaluation.values().items()}
