"""model and held-out batches -> loss, perplexity and bits per byte."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from llmt.data.batch import Batch

if TYPE_CHECKING:
    from llmt.models.base import BaseLanguageModel


@dataclass(frozen=True)
class EvalReport:
    """Sums over held-out text, divided once.

    Attributes:
        nats: Sum of the negative log-likelihoods.
        tokens: Tokens predicted.
        text_bytes: UTF-8 bytes that these tokens stand for; 0 where only a part was measured, or where the
            tokenizer drops bytes.
    """

    nats: float
    tokens: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Nats for each token."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is too large to hold."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits for each UTF-8 byte of text, comparable across tokenizers; None where the bytes are not known."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def values(self) -> dict[str, float | int | None]:
        """The numbers by name, as they are logged."""
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
        }

    def over(self, total: Callable[..., list[float]]) -> "EvalReport":
        """The same over all processes, whose numbers `total` sums; the bytes are those of all of them already."""
        nats, tokens = total(self.nats, self.tokens)
        return EvalReport(nats, round(tokens), self.text_bytes)


@torch.no_grad()
def evaluate(
    model: "BaseLanguageModel",
    batches: Iterable[Batch],
    *,
    text_bytes: int,
    progress: Callable[[int], None] | None = None,
) -> EvalReport:
    """Measure a model on batches whose labels are shifted already.

    The model is put back into the mode it was in. Sums are kept in float64.

    Args:
        model: What to measure.
        batches: Held-out batches.
        text_bytes: UTF-8 bytes of the text behind all of them.
        progress: Told the tokens measured so far.
    """
    training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            here = batch.to(model.device)
            loss = model.loss(here.input_ids, here.labels, here.position_ids)
            nats += float(loss.nats)
            tokens += loss.tokens
            if progress is not None:
                progress(tokens)
    finally:
        model.train(training)
    return EvalReport(nats, tokens, text_bytes)
