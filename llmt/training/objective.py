"""what a run learns -> the sum that a step lowers, and how it is measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from llmt.config.run import TrainConfig
from llmt.config.training import TrainingConfig
from llmt.data.batch import Batch
from llmt.errors import DataError, UsageError
from llmt.evaluation.perplexity import EvalReport, evaluate
from llmt.evaluation.preference import PreferenceReport, evaluate_preference
from llmt.models.preference import PreferenceLoss, count_pairs, ratios_of

if TYPE_CHECKING:
    from llmt.models.base import BaseLanguageModel

Report = EvalReport | PreferenceReport


class Objective(Protocol):
    """What is learnt: a sum over what counts, divided once for a step by how much of it there is."""

    def count(self, batch: Batch) -> int:
        """How many summands a batch has."""
        ...

    def summed(self, model: "BaseLanguageModel", batch: Batch) -> Tensor:
        """The loss of a batch on the model's device, summed and not divided; a scalar with gradients."""
        ...

    def measure(self, model: "BaseLanguageModel", batches: Iterable[Batch], text_bytes: int) -> Report:
        """The same without gradients over held-out batches."""
        ...


class NextToken:
    """The negative log-likelihood of each label."""

    def count(self, batch: Batch) -> int:
        """The labels."""
        return batch.tokens

    def summed(self, model: "BaseLanguageModel", batch: Batch) -> Tensor:
        """Nats."""
        return model.loss(batch.input_ids, batch.labels, batch.position_ids).nats

    def measure(self, model: "BaseLanguageModel", batches: Iterable[Batch], text_bytes: int) -> EvalReport:
        """Loss, perplexity and bits per byte."""
        return evaluate(model, batches, text_bytes=text_bytes)


@dataclass(frozen=True)
class Preference:
    """How the adapter prefers the chosen of two documents, against its base.

    Attributes:
        loss: What a pair costs.
    """

    loss: PreferenceLoss

    def count(self, batch: Batch) -> int:
        """The pairs."""
        return count_pairs(batch.labels, batch.position_ids)

    def summed(self, model: "BaseLanguageModel", batch: Batch) -> Tensor:
        """The losses of the pairs."""
        return self.loss.of(*ratios_of(model, batch.input_ids, batch.labels, batch.position_ids)).sum()

    def measure(self, model: "BaseLanguageModel", batches: Iterable[Batch], text_bytes: int) -> PreferenceReport:
        """Loss, accuracy and margin."""
        del text_bytes
        return evaluate_preference(model, batches, self.loss)


def objective_of(training: TrainingConfig) -> NextToken | Preference:
    """The objective that was asked for."""
    if training.objective == "next_token":
        return NextToken()
    return Preference(preference_loss(training))


def preference_loss(training: TrainingConfig) -> PreferenceLoss:
    """The loss of a pair."""
    return PreferenceLoss(training.dpo_loss, training.dpo_beta, training.dpo_label_smoothing)


def check_asked(config: TrainConfig) -> None:
    """Preferences are learnt by an adapter, from data that is named.

    Raises:
        DataError: No sources are named, and what is built in has no pairs.
        UsageError: A whole model was to be trained: it would need a second one beside it.
    """
    if config.training.objective != "dpo":
        return
    if not config.lora.enabled:
        raise UsageError(
            "training.objective dpo: trains an adapter, since the base below it is the reference",
            "llmt train --lora --objective dpo --data PAIRS",
        )
    if not config.data.sources:
        raise DataError(
            "data.sources: preferences are learnt from pairs, and none are built in",
            "llmt train dpo --data PAIRS.jsonl, with prompt, chosen and rejected in each row",
        )


def check_data(config: TrainConfig, *, pairs: bool) -> None:
    """The data is what the objective learns from.

    Args:
        config: The run as asked.
        pairs: Whether the data is pairs.

    Raises:
        DataError: It is something else.
    """
    named = ", ".join(config.data.sources)
    if config.training.objective == "dpo" and not pairs:
        raise DataError(
            f"{named}: holds no pairs for training.objective dpo",
            "columns prompt, chosen and rejected, or others by --columns chosen=COLUMN,rejected=COLUMN",
        )
    if config.training.objective == "next_token" and pairs:
        raise DataError(
            f"{named}: holds pairs of a chosen and a rejected answer, which training.objective next_token does not "
            "compare",
            "--lora --objective dpo; or learn the chosen alone: --columns completion=chosen, messages=chosen for turns",
        )
