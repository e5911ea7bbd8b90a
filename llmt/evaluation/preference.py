"""adapter and held-out pairs -> loss, accuracy and margin of its preferences."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llmt.data.batch import Batch
from llmt.models.preference import PreferenceLoss, ratios_of

if TYPE_CHECKING:
    from llmt.models.base import BaseLanguageModel


@dataclass(frozen=True)
class PreferenceReport:
    """Sums over held-out pairs, divided once.

    Attributes:
        summed: Sum of the losses.
        pairs: Pairs that were compared.
        preferred: Pairs whose chosen document has the higher reward.
        margin: Sum of the differences of the rewards.
        tokens: Labels of both documents of all pairs.
    """

    summed: float
    pairs: int
    preferred: int
    margin: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean over the pairs."""
        return self.summed / max(self.pairs, 1)

    @property
    def reward_accuracy(self) -> float:
        """Share of the pairs whose chosen document has the higher reward."""
        return self.preferred / max(self.pairs, 1)

    @property
    def reward_margin(self) -> float:
        """Mean difference of the rewards."""
        return self.margin / max(self.pairs, 1)

    def values(self) -> dict[str, float | int | None]:
        """The numbers by name, as they are logged."""
        return {
            "loss": self.loss,
            "reward_accuracy": self.reward_accuracy,
            "reward_margin": self.reward_margin,
            "pairs": self.pairs,
            "tokens": self.tokens,
        }

    def over(self, total: Callable[..., list[float]]) -> "PreferenceReport":
        """The same over all processes, whose numbers `total` sums."""
        summed, pairs, preferred, margin, tokens = total(
            self.summed, self.pairs, self.preferred, self.margin, self.tokens
        )
        return PreferenceReport(summed, round(pairs), round(preferred), margin, round(tokens))


@torch.no_grad()
def evaluate_preference(
    model: "BaseLanguageModel",
    batches: Iterable[Batch],
    loss: PreferenceLoss,
    *,
    progress: Callable[[int], None] | None = None,
) -> PreferenceReport:
    """Measure an adapter on batches of pairs.

    The model is put back into the mode it was in. Sums are kept in float64.

    Args:
        model: An adapter on its base.
        batches: Held-out pairs.
        loss: What a pair costs.
        progress: Told the tokens measured so far.

    Raises:
        MismatchError: A batch is not of pairs.
        UsageError: The model is not an adapter.
    """
    training = model.training
    model.eval()
    summed = margin = 0.0
    pairs = preferred = tokens = 0
    try:
        for batch in batches:
            here = batch.to(model.device)
            ratios, labels = ratios_of(model, here.input_ids, here.labels, here.position_ids)
            margins = loss.margins(ratios).double()
            summed += float(loss.of(ratios, labels).double().sum())
            margin += float(margins.sum())
            pairs += len(margins)
            preferred += int((margins > 0).sum())
            tokens += batch.tokens
            if progress is not None:
                progress(tokens)
    finally:
        model.train(training)
    return PreferenceReport(summed, pairs, preferred, margin, tokens)
