"""ModelConfig <-> the `config.json` of a Llama."""

from collections.abc import Mapping
from typing import Any

from llmt.config.model import ModelConfig
from llmt.errors import ModelFileError

LLAMA_TYPES = ("llama", "mistral")


def llama_config(config: ModelConfig, vocab_size: int, context_length: int) -> dict[str, Any]:
    """The `config.json` of a model, complete enough that no reader falls back to a default of its own.

    The rotary base stands there in both spellings: readers know one or the other.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context_length,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "attention_dropout": config.attention_dropout,
        "mlp_bias": False,
        "use_cache": True,
    }


def is_llama(values: Mapping[str, Any]) -> bool:
    """Whether `TransformerLM` computes what this `config.json` describes."""
    heads, width = values.get("num_attention_heads", 1), values.get("hidden_size", 0)
    if type(heads) is not int or heads < 1 or type(width) is not int:
        return False
    # Where a Mistral says nothing of its window, readers take one of 4096.
    window = values.get("sliding_window", 4096 if values.get("model_type") == "mistral" else None)
    more = (window, values.get("attention_bias"), values.get("mlp_bias"), "auto_map" in values)
    known = values.get("model_type") in LLAMA_TYPES and values.get("hidden_act", "silu") == "silu"
    whole = (values.get("head_dim") or width // heads) * heads == width
    return known and whole and not any(more) and _turns_plainly(values)


def _turns_plainly(values: Mapping[str, Any]) -> bool:
    """Rotary positions over all features of a head, without scaling."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return False
    part = values.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    return rope.get("rope_type", rope.get("type", "default")) == "default" and part == 1.0


def context_of(values: Mapping[str, Any]) -> int | None:
    """The longest context that a `config.json` names, in tokens; None where it names none."""
    names = ("max_position_embeddings", "n_positions", "context_length")
    found = next((values[name] for name in names if values.get(name)), None)
    return found if isinstance(found, int) else None


def foreign_shape(values: Mapping[str, Any]) -> ModelConfig:
    """About the size of another architecture, for estimates: its width, depth and feed-forward size."""
    width = int(values.get("hidden_size") or values.get("n_embd") or 768)
    inner = int(values.get("intermediate_size") or values.get("n_inner") or 4 * width)
    layers = int(values.get("num_hidden_layers") or values.get("n_layer") or 12)
    even = width + width % 2
    return ModelConfig(
        hidden_size=even,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
    )


def parse_llama_config(values: Mapping[str, Any], name: str) -> tuple[ModelConfig, int, int]:
    """The network that a Llama `config.json` describes.

    Args:
        values: The parsed file.
        name: How errors call it.

    Returns:
        The configuration, the vocabulary size and the context length.

    Raises:
        ModelFileError: A field is missing or has no meaning.
    """
    rope = values.get("rope_parameters") or {}
    context = values.get("max_position_embeddings", 2048)
    try:
        config = ModelConfig(
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=values["num_attention_heads"],
            num_key_value_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            max_position_embeddings=context,
            rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
            rms_norm_eps=values.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=values.get("tie_word_embeddings", False),
            initializer_range=values.get("initializer_range", 0.02),
            attention_dropout=values.get("attention_dropout", 0.0),
        )
        return config, int(values["vocab_size"]), context
    except KeyError as error:
        raise ModelFileError(f"{name}: {error.args[0]} is missing", "download the model again") from None
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelFileError(f"{name}: {reason}", "download the model again") from None
