"""Small models of several architectures of transformers."""

from typing import Any

from llmt.config.model import ModelConfig
from llmt.models.fresh import new_model
from llmt.models.huggingface import HuggingFaceModelWrapper

IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": SHAPE,
    "mistral": {**SHAPE, "num_key_value_heads": 1},
    "qwen2": {**SHAPE, "num_key_value_heads": 1},
    "qwen3": {**SHAPE, "num_key_value_heads": 1, "head_dim": 8},
    "gemma": {**SHAPE, "num_key_value_heads": 1, "head_dim": 8},
    "phi": SHAPE,
    "gpt_neox": SHAPE,
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mixtral": {**SHAPE, "num_key_value_heads": 1, "num_local_experts": 2},
}


def fresh(kind: str, seed: int = 3, **more: Any) -> HuggingFaceModelWrapper:
    config = ModelConfig(huggingface={"model_type": kind, **KINDS[kind], **more})
    model = new_model(config, 61, 32, seed, IDS)
    assert isinstance(model, HuggingFaceModelWrapper)
    return model.eval()
