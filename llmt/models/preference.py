"""pairs of documents -> how much more an adapter prefers the chosen one than its base does, and the loss of that.

Direct preference optimisation: Rafailov et al., "Direct preference optimization: your language model is secretly a
reward model", 2023 (https://arxiv.org/abs/2305.18290).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llmt.errors import MismatchError
from llmt.models.loss import IGNORED

if TYPE_CHECKING:
    from llmt.models.base import BaseLanguageModel


@dataclass(frozen=True)
class PreferenceLoss:
    """What a pair costs. The definitions are those of the library trl, whose `sigmoid` is not smoothed.

    Attributes:
        kind: `sigmoid`, the negative log-likelihood of the preference; `hinge`; or `ipo`, whose log-ratios are means
            for each token.
        beta: What log-ratios are multiplied by; under `ipo` the target is half of its inverse.
        label_smoothing: Under `sigmoid`, the share of pairs that are taken to be the wrong way round.
    """

    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def of(self, ratios: Tensor, tokens: Tensor) -> Tensor:
        """The loss of each pair, `(P,)`.

        Args:
            ratios: `(P, 2)`, log-likelihood of the chosen and the rejected document less that under the reference.
            tokens: `(P, 2)`, their labels.
        """
        if self.kind == "ipo":
            chosen, rejected = (ratios / tokens).unbind(1)
            return (chosen - rejected - 1 / (2 * self.beta)) ** 2
        margins = self.margins(ratios)
        if self.kind == "hinge":
            return torch.relu(1 - margins)
        smoothing = self.label_smoothing
        return -F.logsigmoid(margins) * (1 - smoothing) - F.logsigmoid(-margins) * smoothing

    def margins(self, ratios: Tensor) -> Tensor:
        """How much higher the reward of the chosen document is, of each pair, `(P,)`."""
        chosen, rejected = ratios.unbind(1)
        return self.beta * (chosen - rejected)


def count_pairs(labels: Tensor, position_ids: Tensor | None) -> int:
    """Pairs of a batch: half of the documents that hold labels."""
    if position_ids is None:
        return 0
    return len(torch.unique(_documents(position_ids)[labels.flatten() != IGNORED])) // 2


def ratios_of(
    model: "BaseLanguageModel", input_ids: Tensor, labels: Tensor, position_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each document of a batch of pairs, less that under the base alone; and its labels.

    The base reads first, without gradients and without dropout; the ratios have the adapter's gradients. They are
    summed label by label, so that long documents lose nothing to rounding.

    Args:
        model: An adapter on a base.
        input_ids: `(B, T)` token ids.
        labels: `(B, T)` next tokens, -100 where nothing is predicted.
        position_ids: `(B, T)`, 0 where a document begins. Those that hold a label are pairs, one behind the other.

    Returns:
        `(P, 2)` ratios and numbers of labels: of each pair the chosen and the rejected document.

    Raises:
        MismatchError: The batch is not of pairs.
        UsageError: The model is not an adapter on a base.
    """
    if position_ids is None:
        raise MismatchError("a batch of pairs has no positions, which say where a document begins", "--document-mask")
    counted = labels.flatten() != IGNORED
    _, numbers, tokens = torch.unique(_documents(position_ids)[counted], return_inverse=True, return_counts=True)
    if len(tokens) % 2:
        raise MismatchError(
            f"a batch of {len(tokens)} documents with labels: these are no pairs", "--format preference"
        )
    with torch.no_grad(), model.adapter_off():
        reference = model.label_nats(input_ids, labels, position_ids)
    gained = reference - model.label_nats(input_ids, labels, position_ids)
    ratios = torch.zeros(len(tokens), dtype=gained.dtype, device=gained.device).index_add(0, numbers, gained)
    return ratios.view(-1, 2), tokens.view(-1, 2)


def _documents(position_ids: Tensor) -> Tensor:
    """The number of the document of each position, `(B * T,)`."""
    return (position_ids == 0).flatten().cumsum(0)
