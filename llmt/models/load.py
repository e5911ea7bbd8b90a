"""model directory <-> model on a device."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.weights import load_weights
from llmt.errors import MismatchError, ModelFileError
from llmt.models.base import BaseLanguageModel
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.llama import is_llama, parse_llama_config
from llmt.models.transformer import TransformerLM

TIED_HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"


def load_model(directory: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> BaseLanguageModel:
    """Open a model directory: Llama-shaped ones as `TransformerLM`, any other through transformers.

    Args:
        directory: Holds `config.json` and safetensors.
        device: Where the weights go.
        dtype: Number format of the weights.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe.
        MismatchError: The tensors are not those that the configuration describes.
    """
    directory = Path(directory)
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
