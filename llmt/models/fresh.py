"""model settings -> a model with random weights: llmt's own, an architecture of transformers, or a registered class."""

from collections.abc import Mapping
from typing import Any

import torch

from llmt.config.model import ModelConfig
from llmt.errors import ConfigError, ModelFileError, UsageError
from llmt.models.base import BaseLanguageModel, Extras
from llmt.models.foreign import check_config
from llmt.models.huggingface import HuggingFaceModelWrapper, parse_config
from llmt.models.llama import is_llama, parse_llama_config
from llmt.models.registry import find_model_class, known_models
from llmt.models.transformer import TransformerLM


def new_model(
    config: ModelConfig, vocab_size: int, context_length: int, seed: int, token_ids: Mapping[str, int | None]
) -> BaseLanguageModel:
    """A model that has learnt nothing.

    Args:
        config: The settings.
        vocab_size: Tokens that it is to know at least.
        context_length: Its context, where the settings do not say.
        seed: Start of the random numbers.
        token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id` of the tokenizer.

    Raises:
        UsageError: No class is registered under the name.
        ConfigError: transformers has no such architecture, or a value has no meaning for it.
    """
    if config.custom:
        return _registered(config.custom, vocab_size, context_length, seed)
    if config.huggingface:
        try:
            values = complete_config(config.huggingface, vocab_size, context_length, token_ids)
            model = HuggingFaceModelWrapper.from_config(values, seed)
        except ModelFileError as error:
            raise ConfigError([error.message], error.hint) from None
        model.extras = Extras(token_ids)
        return model
    fresh = TransformerLM(config, vocab_size, context_length)
    fresh.initialize(seed)
    return fresh


def complete_config(
    values: Mapping[str, Any], vocab_size: int, context_length: int, token_ids: Mapping[str, int | None]
) -> dict[str, Any]:
    """A bare configuration of transformers with what the text decides: vocabulary, context and special ids.

    What it says itself stands.

    Raises:
        ModelFileError: transformers has no such architecture, or a value has no meaning for it.
    """
    check_config(values, "model.huggingface")
    # Without its special ids: those of an architecture's default may lie outside the vocabulary.
    given = {"vocab_size": vocab_size, **token_ids, **values}
    names = parse_config(given, "model.huggingface").attribute_map
    context = names.get("max_position_embeddings", "max_position_embeddings")
    asked = "max_position_embeddings" in values or context in values
    return given if asked else {**given, context: context_length}


def measured_shape(config: ModelConfig, vocab_size: int, context_length: int) -> tuple[dict[str, Any], int]:
    """The `config.json` and the number of parameters of what `new_model` would make.

    Raises:
        UsageError: No class is registered under the name.
        ConfigError: transformers has no such architecture, or a value has no meaning for it.
    """
    nothing = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    # A class of one's own may look at numbers while it is made.
    with torch.device("cpu" if config.custom else "meta"):
        model = new_model(config, vocab_size, context_length, 0, nothing)
    return model.model_config(), model.num_parameters()


def _registered(values: Mapping[str, Any], vocab_size: int, context_length: int, seed: int) -> BaseLanguageModel:
    name = str(values.get("model_type"))
    cls = find_model_class(name)
    if cls is None:
        known = ", ".join(known_models()) or "none"
        raise UsageError(
            f"model.custom: no class is registered as {name!r}; there are: {known}",
            "set LLMT_PLUGINS to the module or .py file that registers it",
        )
    options = {key: value for key, value in values.items() if key != "model_type"}
    sizes = {"vocab_size": vocab_size, "context_length": options.pop("context_length", context_length)}
    torch.manual_seed(seed)
    try:
        return cls(**sizes, **options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UsageError(f"model.custom: {cls.__name__}: {error}", "give the arguments of its constructor") from None


def without_numbers(values: Mapping[str, Any], name: str) -> BaseLanguageModel | None:
    """The model that a `config.json` describes, whose weights take no memory; None of a class of one's own.

    Args:
        values: The parsed file.
        name: How errors call it.

    Raises:
        ModelFileError: It describes none.
    """
    if find_model_class(str(values.get("model_type"))) is not None:
        return None
    with torch.device("meta"):
        if is_llama(values):
            return TransformerLM(*parse_llama_config(values, name))
        return HuggingFaceModelWrapper.from_config(values)
