"""texts -> a trained tokenizer, by the name of the algorithm."""

from collections.abc import Iterable
from typing import Any

from llmt.errors import UsageError
from llmt.tokenizers.fast import TrainableTokenizer
from llmt.tokenizers.load import KINDS

MAKING: dict[str, tuple[str, ...]] = {
    "bpe": ("split", "special_tokens"),
    "unigram": ("split", "special_tokens"),
    "byte": ("split", "special_tokens"),
    "wordpiece": ("style", "threshold", "score", "max_subword_length", "continuation_prefix", "limit_alphabet"),
}
"""Which options each kind of tokenizer is made with."""

TRAINING: dict[str, tuple[str, ...]] = {
    "bpe": ("vocab_size", "min_frequency", "progress"),
    "unigram": ("vocab_size", "progress"),
    "byte": (),
    "wordpiece": ("vocab_size", "min_frequency", "num_proc", "engine", "progress"),
}
"""Which options its training reads."""


def options_of(algo: str) -> tuple[str, ...]:
    """Every option that an algorithm reads."""
    return MAKING[algo] + TRAINING[algo]


def train_tokenizer(algo: str, texts: Iterable[str], **options: Any) -> TrainableTokenizer:
    """Train a tokenizer.

    Args:
        algo: `bpe`, `unigram`, `wordpiece` or `byte`.
        texts: Documents; `byte` reads none.
        **options: Options of the tokenizer's class and of its `train`. One that another algorithm reads and
            this one does not is left out, so that a whole configuration section can be passed.

    Raises:
        UsageError: An unknown algorithm or option.
        ConfigError: A value that cannot be.
        DataError: No text.
    """
    if algo not in KINDS:
        raise UsageError(f"algo {algo!r}: there is no such algorithm", f"choose one of {', '.join(KINDS)}")
    known = {name for kind in KINDS for name in options_of(kind)}
    if unknown := sorted(options.keys() - known):
        raise UsageError(f"{unknown[0]}: no algorithm has this option", f"options are {', '.join(sorted(known))}")
    tokenizer = KINDS[algo](**{name: options[name] for name in MAKING[algo] if name in options})
    if algo != "byte":
        tokenizer.train(texts, **{name: options[name] for name in TRAINING[algo] if name in options})
    return tokenizer
