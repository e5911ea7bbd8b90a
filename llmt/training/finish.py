"""the end of a run -> a finished model, measured as anybody would measure it, and a sample of its text."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmt.data.loader import evaluation_batches
from llmt.data.ready import ReadyData
from llmt.errors import ModelFileError
from llmt.models.base import BaseLanguageModel
from llmt.models.load import load_model
from llmt.models.lora import load_adapter
from llmt.training.keeper import RunKeeper
from llmt.training.loop import TrainingLoop
from llmt.training.objective import Report
from llmt.training.sample import write_sample
from llmt.training.trained import trained_parts

if TYPE_CHECKING:
    from llmt.training.build import Prepared


_AUDITED = ("documents", "tokens", "trained", "masked", "dropped", "truncated")
"""What the record of a run says of its data; `audit.json` has all of it."""


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        directory: Holds the model.
        step: The step whose weights it holds.
        model: The model, loaded from there.
        evaluation: Its validation; None where nothing is held out.
        warning: Why it is not the best one; empty where it is.
    """

    directory: Path
    step: int
    model: BaseLanguageModel
    evaluation: Report | None
    warning: str = ""


def finish(loop: TrainingLoop, keeper: RunKeeper, prepared: "Prepared", base: Path | None) -> Finished:
    """Publish the best checkpoint (the last, where nothing is held out) and measure what was published.

    The model is loaded from its directory again, so that the number printed is the number that `llmt eval`
    finds there.

    Raises:
        StorageError: The disk refused.
    """
    step, warning = _published_step(loop, keeper)
    source = keeper.store.path(step)
    model = load_finished(source, base, prepared.plan.device)
    evaluation = None
    held_out = prepared.corpus.data.validation
    if held_out is not None:
        batches = evaluation_batches(held_out, loop.limits.micro_batch)
        text_bytes = held_out.text_bytes if prepared.corpus.tokenizer.is_lossless else 0
        evaluation = loop.objective.measure(model, batches, text_bytes)
    keeper.publish(step, _summary(loop, prepared, model, evaluation))
    return Finished(prepared.directory, step, model, evaluation, warning)


def _published_step(loop: TrainingLoop, keeper: RunKeeper) -> tuple[int, str]:
    """The best step, or the last where the best is gone or damaged; and what is to be said of that."""
    state = loop.state
    if state.best_step is None:
        return state.step, ""
    if not loop.limits.validates:
        return state.step, f"the run does not validate any more: its last step is published, not {state.best_step}"
    try:
        return keeper.store.verified(state.best_step).step, ""
    except ModelFileError as error:
        return state.step, f"the best checkpoint cannot be published: {error.message}; step {state.step} is instead"


def load_finished(directory: Path, base: Path | None, device: str) -> BaseLanguageModel:
    """A model directory in fp32; an adapter on its base."""
    if (directory / "adapter_config.json").is_file() and base is not None:
        return load_adapter(load_model(base, device=device), directory).to(device)
    return load_model(directory, device=device)


def sample_text(finished: Finished, prepared: "Prepared") -> Iterator[str]:
    """A sample of what the model writes, piece by piece."""
    return write_sample(finished.model, prepared.corpus.tokenizer, prepared.config)


def _summary(
    loop: TrainingLoop, prepared: "Prepared", model: BaseLanguageModel, evaluation: Report | None
) -> dict[str, Any]:
    """The numbers of a run, for its record and its card."""
    values: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "trained_parameters": sum(part.parameters for part in trained_parts(loop.model)),
        "vocab_size": prepared.corpus.tokenizer.vocab_size,
        "context_length": model.context_length,
        "steps": loop.state.step,
        "tokens": loop.state.tokens,
        "seconds": round(loop.state.seconds, 1),
        "device": prepared.plan.device,
        "precision": prepared.plan.precision,
        "data_fingerprint": prepared.corpus.data.fingerprint,
    }
    if isinstance(prepared.corpus.data, ReadyData):
        found = prepared.corpus.data.audit.values()
        values |= {f"data_{key}": found[key] for key in _AUDITED}
    if evaluation is not None:
        found = evaluation.values()
        # The perplexity of a run that exploded is infinite, which JSON cannot say.
        values |= {f"validation_{key}": None if value == math.inf else value for key, value in found.items()}
    return values
