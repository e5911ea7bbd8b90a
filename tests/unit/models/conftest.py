"""Tiny networks with weights that are nowhere zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.config.model import ModelConfig
from llmt.models.transformer import TransformerLM

VOCABULARY = 101


def make_model(seed: int = 0, vocab_size: int = VOCABULARY, **settings: Any) -> TransformerLM:
    """Two layers of width 32; every matrix is drawn, the ones that begin as zero too."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = TransformerLM(ModelConfig(**(shape | settings)), vocab_size, 64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale, centre = (0.2, 0.0) if parameter.ndim == 2 else (0.1, 1.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + centre)
    return model.eval()


@pytest.fixture
def make() -> Callable[..., TransformerLM]:
    return make_model


@pytest.fixture
def ids() -> torch.Tensor:
    """`(3, 17)` ids."""
    return torch.randint(0, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A GPT-2 that transformers saved."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"
