"""a model and a number of tokens -> the same model with that many rows in its embeddings and its output head."""

from typing import Any

import torch
from torch import Tensor, nn

from llmt.errors import UsageError


def resized(rows: Tensor, size: int) -> nn.Parameter:
    """The first `size` rows of a `(V, ...)` matrix; rows that it lacks are the mean of those it has.

    A new token then begins about as likely as the average one, and leaves what the model predicts otherwise
    as it was, where rows drawn at random can draw all probability to the new tokens (John Hewitt,
    "Initializing new word embeddings for pretrained language models", 2021).
    """
    with torch.no_grad():
        kept = rows[:size]
        mean = rows.float().mean(dim=0, keepdim=True).to(rows.dtype)
        new = torch.cat((kept, mean.expand(max(0, size - len(rows)), *rows.shape[1:])))
    return nn.Parameter(new.contiguous(), requires_grad=rows.requires_grad)


def check_size(old: int, new: int, shrink: bool, head: Tensor) -> None:
    """Refuse what would lose tokens, or add some that are never learnt.

    Args:
        old: Tokens that the model knows.
        new: Tokens that it is to know.
        shrink: Whether fewer were asked for expressly.
        head: The output weights.

    Raises:
        UsageError: Not a size, fewer than before, or the embeddings are frozen.
    """
    if new < 1:
        raise UsageError(f"resize_token_embeddings: {new} is no number of tokens", "give len(tokenizer)")
    if new < old and not shrink:
        raise UsageError(
            f"resize_token_embeddings: the model knows {old:,} tokens, and of {new:,} the ids {new} to {old - 1} "
            "would be lost",
            "keep the size, or give shrink=True where no tokenizer uses them",
        )
    if not head.requires_grad:
        raise UsageError(
            "resize_token_embeddings: the embeddings are frozen, and new rows would never be learnt",
            "resize the base model, and add the adapter after that",
        )


def resize_vocabulary(model: nn.Module, head: Tensor, size: int) -> nn.Embedding:
    """Give a model `size` tokens, in place: its one embedding, and its output head where that is not tied.

    A part that is a model of transformers is told to do so itself; its new rows are then the mean too.

    Args:
        model: The model.
        head: Its `(V, D)` output weights.
        size: Number of tokens wanted.

    Returns:
        The input embedding.

    Raises:
        UsageError: The model has no embedding, or more than one.
    """
    for part in model.children():
        if hasattr(part, "resize_token_embeddings"):
            return _resize_transformers(part, size)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if len(embeddings) != 1:
        raise UsageError(f"resize_token_embeddings: the model has {len(embeddings)} embeddings", "resize them yourself")
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight is head]
    for linear in heads:
        linear.weight = resized(linear.weight, size)
        if linear.bias is not None:
            linear.bias = resized(linear.bias, size)
        linear.out_features = size
    embeddings[0].weight = resized(embeddings[0].weight, size)
    embeddings[0].num_embeddings = size
    return embeddings[0]


def _resize_transformers(inner: Any, size: int) -> nn.Embedding:
    old = inner.get_input_embeddings().weight.shape[0]
    inner.resize_token_embeddings(size, mean_resizing=False)
    parts = (inner.get_input_embeddings(), inner.get_output_embeddings())
    rows = [part.weight for part in parts if part is not None]
    bias = [part.bias for part in parts if isinstance(part, nn.Linear) and part.bias is not None]
    with torch.no_grad():
        for values in [*rows, *bias]:
            values[old:] = values[:old].float().mean(dim=0).to(values.dtype)
    embedding: nn.Embedding = parts[0]
    return embedding
