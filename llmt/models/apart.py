"""a model -> whether it keeps the documents of one row apart."""

import inspect

import torch
from torch import Tensor

from llmt.errors import UsageError
from llmt.models.base import BaseLanguageModel
from llmt.models.lora import LoraModel
from llmt.models.loss import IGNORED

LENGTH = 4
"""Tokens of each of the two documents of the trial."""


@torch.no_grad()
def keeps_documents_apart(model: BaseLanguageModel) -> bool:
    """Whether the second of two documents in a row is read as if it stood alone, shown by trying it.

    An architecture may pass over `position_ids`, or carry something on that no mask holds back; it would then learn
    from neighbours without a word. A model whose weights hide what its layers do, such as output matrices that are
    all zero, hides this too.

    Args:
        model: Any model; put back into the mode it was in.
    """
    if not _takes_positions(model.base if isinstance(model, LoraModel) else model):
        return False
    training = model.training
    model.eval()
    try:
        length = max(min(LENGTH, model.context_length // 2), 1)
        first, second = torch.arange(2 * length, device=model.device).remainder(model.vocab_size).chunk(2)
        positions = torch.arange(length, device=model.device)
        alone = _read_last(model, second, positions)
        packed = _read_last(model, torch.cat((first, second)), positions.repeat(2))
        other = _read_last(model, torch.cat(((first + 1) % model.vocab_size, second)), positions.repeat(2))
    except UsageError:
        return False
    finally:
        model.train(training)
    eps = torch.finfo(next(model.parameters()).dtype).eps
    # Rows of one shape are computed alike, in bf16 too; a row of another shape is rounded otherwise.
    return _close(packed, other, 1e-6) and _close(packed, alone, max(1e-4, 4 * eps))


def _takes_positions(model: BaseLanguageModel) -> bool:
    """Every method that reads ids has the argument."""
    methods = (model.hidden_states, model.forward, model.loss)
    return all("position_ids" in inspect.signature(method).parameters for method in methods)


def _read_last(model: BaseLanguageModel, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, logits and loss of the last document of a row, fp32."""
    length = int(positions[-1]) + 1
    row, places = ids[None], positions[None]
    labels = torch.full_like(row, IGNORED)
    labels[0, -length:] = row[0, -length:]
    hidden = model.hidden_states(row, position_ids=places)[0, -length:]
    logits = model(row, position_ids=places)[0, -length:]
    return hidden.float(), logits.float(), model.loss(row, labels, places).nats.float()


def _close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> bool:
    """Each differs by no more than this share of its largest number."""
    pairs = zip(found, expected, strict=True)
    return all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in pairs)
