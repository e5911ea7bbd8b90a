"""model directory <-> model on a device."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, staged_directory
from llmt.checkpoints.weights import load_weights, save_weights
from llmt.errors import MismatchError, ModelFileError
from llmt.models.base import BaseLanguageModel
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.llama import is_llama, parse_llama_config
from llmt.models.transformer import TransformerLM
from llmt.units import parse_size

TIED_HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"


def load_model(directory: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> BaseLanguageModel:
    """Open a model directory: Llama-shaped ones as `TransformerLM`, any other through transformers.

    Args:
        directory: Holds `config.json` and safetensors.
        device: Where the weights go.
        dtype: Number format of the weights.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe.
        MismatchError: The tensors are not those that the configuration describes.
    """
    values = read_config(directory)
    if not is_llama(values):
        return HuggingFaceModelWrapper(directory, dtype).to(device)
    config, vocab_size, context = parse_llama_config(values, str(directory / layout.CONFIG_FILE))
    with torch.device("meta"):
        model = TransformerLM(config, vocab_size, context)
    weights = load_weights(directory)
    if config.tie_word_embeddings and EMBEDDINGS in weights:
        weights.pop(TIED_HEAD, None)
    _check_names(model.state_dict(), weights, directory)
    converted = {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}
    model.load_state_dict(converted, assign=True)
    return model.requires_grad_(True)


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model directory.

    Raises:
        ModelFileError: There is none, or it is no JSON mapping.
    """
    path = directory / layout.CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{directory}: has no {layout.CONFIG_FILE}", "name a model directory") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelFileError(f"{path}: {error}", "download the model again") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: is not a mapping", "download the model again")
    return values


def save_model(
    model: BaseLanguageModel,
    directory: Path,
    max_shard_size: int | str,
    *,
    weights: Mapping[str, Tensor] | None,
    token_ids: Mapping[str, int | None] | None,
) -> Path:
    """Write a model directory, whole or not at all; see `BaseLanguageModel.save_pretrained`.

    Raises:
        StorageError: The directory exists, or the disk refused.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with staged_directory(directory, extra={}) as staged:
        write_model(staged, model, weights=weights, token_ids=token_ids, max_shard_size=parse_size(max_shard_size))
    return directory


def write_model(
    staged: StagedDirectory,
    model: BaseLanguageModel,
    *,
    weights: Mapping[str, Tensor] | None = None,
    token_ids: Mapping[str, int | None] | None = None,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Write `config.json`, `generation_config.json` and the weights into a directory being filled.

    Args:
        staged: Where.
        model: Its configuration, and its weights where none are given.
        weights: Tensors to write instead of the module's own.
        token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`; a name that is absent is not written.
        max_shard_size: Largest file in bytes.
    """
    tensors = model.weights() if weights is None else {**model.weights(), **weights}
    ids = {name: value for name, value in (token_ids or {}).items() if value is not None}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    staged.write_json(layout.CONFIG_FILE, {**model.model_config(), **ids, "dtype": dtype})
    staged.write_json(layout.GENERATION_CONFIG, {"do_sample": True, **ids})
    save_weights(staged, tensors, max_shard_size=max_shard_size)


def _check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], directory: Path) -> None:
    """Every expected tensor is there in its shape, and no other."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which the configuration does not describe"
        more = len(missing) + len(extra) - 1
        raise MismatchError(
            f"{directory}: {what}" + (f" (and {more} more names differ)" if more else ""),
            "download or convert it again",
        )
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise MismatchError(
                f"{directory}: {name} has shape {tuple(found[name].shape)}, "
                f"the configuration says {tuple(tensor.shape)}",
                "download or convert it again",
            )
