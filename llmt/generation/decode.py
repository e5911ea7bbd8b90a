"""prompt ids -> new ids, one a step."""

from collections.abc import Iterator

import torch
from torch import Tensor

from llmt.generation.sampling import Sampling, sample
from llmt.models.base import BaseLanguageModel


def generate(
    model: BaseLanguageModel,
    input_ids: Tensor,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_id: int | None,
    seed: int,
) -> Iterator[Tensor]:
    """Go on from a batch of prompts of one length.

    When the context is full, the older half of it is forgotten and the rest is read again.

    Args:
        model: Gives the logits.
        input_ids: `(B, T)` prompt, T >= 1.
        sampling: How tokens are drawn.
        max_new_tokens: Longest continuation.
        stop_id: A row that draws it is finished; None goes on to the end.
        seed: Start of the random numbers.

    Yields:
        `(B,)` new ids on the CPU; a finished row repeats `stop_id`. Ends when every row is finished.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    ids = input_ids[:, -model.context_length :].to(model.device)
    finished = torch.zeros(ids.shape[0], dtype=torch.bool)
    room = min(ids.shape[1] + max_new_tokens, model.context_length)
    reader = _Reader(model, ids.shape[0], room)
    for _ in range(max_new_tokens):
        if ids.shape[1] > model.context_length:
            ids = ids[:, -max(model.context_length // 2, 1) :]
            reader = _Reader(model, ids.shape[0], room)
        drawn = sample(reader.logits(ids), ids, sampling, generator)
        if stop_id is not None:
            drawn = torch.where(finished, stop_id, drawn)
            finished |= drawn == stop_id
        yield drawn
        if bool(finished.all()):
            return
        ids = torch.cat((ids, drawn.to(ids.device)[:, None]), dim=1)


class _Reader:
    """The logits after a text that grows to `length` tokens; what was read before comes from the cache."""

    def __init__(self, model: BaseLanguageModel, batch_size: int, length: int) -> None:
        self._model = model
        self._cache = model.new_cache(batch_size, length)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """`(B, T)` ids of the whole text to `(B, V)` logits of the token after it."""
        if self._cache is None:
            return self._model(ids)[:, -1]
        logits: Tensor = self._model(ids[:, self._cache.length :], self._cache)
        return logits[:, -1]
