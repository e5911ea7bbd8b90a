"""prompt -> text, piece by piece."""

from collections.abc import Iterator

import torch

from llmt.errors import DataError
from llmt.generation.decode import generate
from llmt.generation.sampling import Sampling
from llmt.models.base import BaseLanguageModel
from llmt.tokenizers.base import Tokenizer


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids to go on from: those of the prompt, after the mark that begins every document in training.

    Raises:
        DataError: The tokenizer has no such mark and the prompt is empty.
    """
    start = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = start + tokenizer.encode(prompt)
    if not ids:
        raise DataError("the prompt is empty", 'llmt generate MODEL --prompt "Once upon"')
    return ids


def stream_text(
    model: BaseLanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int,
) -> Iterator[str]:
    """The continuation of a prompt, as soon as each piece is whole: no character is ever cut.

    Args:
        model: Gives the logits.
        tokenizer: The model's own.
        prompt: Text to go on from; may be empty.
        sampling: How tokens are drawn.
        max_new_tokens: Longest continuation, in tokens.
        seed: Start of the random numbers.
    """
    ids = torch.tensor([prompt_ids(tokenizer, prompt)])
    stream = tokenizer.decode_stream()
    for drawn in generate(
        model, ids, sampling, max_new_tokens=max_new_tokens, stop_id=tokenizer.eos_token_id, seed=seed
    ):
        token = int(drawn[0])
        if token == tokenizer.eos_token_id:
            break
        piece = stream.step(token)
        if piece:
            yield piece
    rest = stream.flush()
    if rest:
        yield rest
