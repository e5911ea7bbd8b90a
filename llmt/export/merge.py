"""adapter and base -> one full model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmt.checkpoints.output import folder_beside, output_directory, require_free_output
from llmt.checkpoints.runs import resolve_model_directory
from llmt.checkpoints.weights import open_weights
from llmt.config.conversion import MergeSettings
from llmt.errors import ModelFileError
from llmt.models.identity import check_base
from llmt.models.load import load_model
from llmt.models.lora import load_adapter
from llmt.models.open import base_of, is_adapter, tokenizer_directory
from llmt.tokenizers.base import special_ids
from llmt.tokenizers.load import load_tokenizer


@dataclass(frozen=True)
class Merged:
    """A full model that was made of an adapter and its base.

    Attributes:
        directory: Holds it.
        dtype: Number format of its weights.
        lost: How far rounding to this format moves the weights, as a share of how far the adapter moved them.
    """

    directory: Path
    dtype: str
    lost: float


def merge_adapter(adapter: Path, settings: MergeSettings, *, base: Path | None = None) -> Merged:
    """Write base plus adapter as a full model, with the adapter's tokenizer, or the base's where it has none.

    Args:
        adapter: Directory of the adapter.
        settings: Where to write, in which format and in files of which size.
        base: Its base; None takes the one that it names.

    Raises:
        BusyOutputError: The output is the adapter or its base, or not empty, or what would be replaced is no model.
        MismatchError: The base is not the one that the adapter was trained on.
        ModelFileError: The adapter or its base cannot be read.
    """
    adapter = resolve_model_directory(adapter)
    if not is_adapter(adapter):
        raise ModelFileError(f"{adapter}: holds no adapter", "name a directory with adapter_config.json")
    base = resolve_model_directory(base or base_of(adapter))
    output = folder_beside(adapter, "merged") if settings.output_dir is None else Path(settings.output_dir)
    require_free_output(output, [adapter, base], settings.overwrite)
    check_base(adapter, base)
    model = load_adapter(load_model(base), adapter).merge()
    tokenizer = load_tokenizer(tokenizer_directory(adapter, base))
    dtype: torch.dtype = getattr(torch, settings.dtype)
    exact = model.weights()
    lost = rounding_share(exact, base, dtype)
    with output_directory(output, durable=True, extra={}) as staged:
        model.write(
            staged,
            weights={name: tensor.to(dtype) for name, tensor in exact.items() if tensor.is_floating_point()},
            token_ids=special_ids(tokenizer),
            max_shard_size=settings.max_shard_size,
        )
        tokenizer.save_pretrained(staged.path)
    return Merged(output, settings.dtype, lost)


def rounding_share(merged: Mapping[str, Tensor], base: Path, dtype: torch.dtype) -> float:
    """How far rounding moves the weights that an adapter moved, as a share of how far it did.

    Args:
        merged: Tensors of the merged model, in fp32.
        base: Directory of the base.
        dtype: What they are rounded to.

    Returns:
        The norm of the one over the norm of the other; 0 in fp32, and where nothing was moved.
    """
    rounded = moved = 0.0
    with open_weights(base) as reader:
        for name, before in reader.tensors(torch.float32, mapped=True):
            if name not in merged or not before.is_floating_point():
                continue
            after = merged[name][: len(before)] if before.ndim else merged[name]
            update = float((after - before).double().square().sum())
            if update:
                moved += update
                rounded += float((after.to(dtype).float() - after).double().square().sum())
    return math.sqrt(rounded / moved) if moved else 0.0
