"""A tiny model that draws every token, and the byte tokenizer."""

import pytest
import torch

from llmt.config.model import ModelConfig
from llmt.models.transformer import TransformerLM
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.train import train_tokenizer


@pytest.fixture
def model() -> TransformerLM:
    """Vocabulary 258, context 64, weights drawn wide enough that its choices vary."""
    shape = ModelConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = TransformerLM(shape, 258, 64)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """256 bytes and two special tokens."""
    return train_tokenizer("byte", iter(["x"]))
