"""model -> a sample of what it writes, piece by piece."""

from collections.abc import Iterator

import torch

from llmt.config.run import TrainConfig
from llmt.generation.sampling import Sampling
from llmt.generation.text import stream_text
from llmt.models.base import BaseLanguageModel
from llmt.tokenizers.base import Tokenizer


def write_sample(model: BaseLanguageModel, tokenizer: Tokenizer, config: TrainConfig) -> Iterator[str]:
    """What the model writes after `logging.sample_prompt`, the same text for the same weights."""
    torch.manual_seed(config.seed)
    return stream_text(
        model,
        tokenizer,
        config.logging.sample_prompt,
        Sampling(),
        max_new_tokens=config.logging.sample_tokens,
        seed=config.seed,
    )


def first_sample(model: BaseLanguageModel, tokenizer: Tokenizer, config: TrainConfig) -> str:
    """The same before the first step: what the base of an adapter says by itself. Nothing is compiled for it."""
    training = model.training
    try:
        with torch.compiler.set_stance("force_eager"):
            return "".join(write_sample(model, tokenizer, config))
    finally:
        model.train(training)
