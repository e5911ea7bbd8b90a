"""a model -> whether it keeps the documents of one row apart."""

import inspect

import torch

from llmt.models.base import BaseLanguageModel

TOLERANCE = 1e-4


@torch.no_grad()
def keeps_documents_apart(model: BaseLanguageModel) -> bool:
    """Whether the second of two documents in a row is read as if it stood alone, shown by trying it.

    An architecture may pass over `position_ids`, or carry something on that no mask holds back; it would then learn
    from neighbours without a word.

    Args:
        model: Any model; put back into the mode it was in.
    """
    if "position_ids" not in inspect.signature(model.hidden_states).parameters:
        return False
    training = model.training
    model.eval()
    try:
        ids = torch.arange(8, device=model.device) % model.vocab_size
        other = torch.cat((ids[:4].flip(0), ids[4:]))
        positions = torch.arange(4, device=model.device).repeat(2)[None]
        first, second = (model.hidden_states(row[None], position_ids=positions)[0, 4:] for row in (ids, other))
        alone = model.hidden_states(ids[None, 4:])[0]
    finally:
        model.train(training)
    scale = float(alone.float().abs().max())
    tolerance = max(TOLERANCE, torch.finfo(alone.dtype).eps * 4) * scale
    return all(float((row - alone).float().abs().max()) <= tolerance for row in (first, second))
