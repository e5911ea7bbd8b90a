"""texts -> a trained tokenizer, by the name of the algorithm."""

from collections.abc import Callable, Iterable
from typing import Any

from llmt.errors import UsageError
from llmt.tokenizers.fast import FastTokenizer

# Which options each algorithm reads.
OPTIONS: dict[str, tuple[str, ...]] = {
    "bpe": ("vocab_size", "min_frequency", "split", "special_tokens"),
    "unigram": ("vocab_size", "split", "special_tokens"),
    "byte": ("special_tokens",),
    "wordpiece": (
        *("vocab_size", "min_frequency", "style", "threshold"),
        *("max_subword_length", "continuation_prefix", "progress"),
    ),
}


def train_tokenizer(algo: str, texts: Iterable[str], **options: Any) -> FastTokenizer:
    """Train a tokenizer.

    Args:
        algo: `bpe`, `unigram`, `wordpiece` or `byte`.
        texts: Documents; `byte` reads none.
        **options: Options of `train_bpe`, `train_unigram`, `train_wordpiece`. One that another algorithm
            reads and this one does not is left out, so that a whole configuration section can be passed.

    Raises:
        UsageError: An unknown algorithm or option.
        ConfigError: A value that cannot be.
        DataError: No text.
    """
    if algo not in OPTIONS:
        raise UsageError(f"algo {algo!r}: there is no such algorithm", f"choose one of {', '.join(OPTIONS)}")
    known = {name for names in OPTIONS.values() for name in names}
    if unknown := sorted(options.keys() - known):
        raise UsageError(f"{unknown[0]}: no algorithm has this option", f"options are {', '.join(sorted(known))}")
    chosen = {name: options[name] for name in OPTIONS[algo] if name in options}
    if algo == "byte":
        from llmt.tokenizers.bpe import train_byte

        return train_byte(**chosen)
    return _trainer(algo)(texts, **chosen)


def _trainer(algo: str) -> Callable[..., FastTokenizer]:
    if algo == "wordpiece":
        from llmt.tokenizers.wordpiece import train_wordpiece

        return train_wordpiece
    from llmt.tokenizers.bpe import train_bpe, train_unigram

    return train_bpe if algo == "bpe" else train_unigram
