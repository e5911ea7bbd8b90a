"""text -> byte-level tokenizers that lose nothing, trained by the `tokenizers` library.

Byte-level BPE is that of GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019);
the unigram model is that of Kudo, "Subword regularization", 2018, over the same 256 byte characters.
"""

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from llmt.errors import ConfigError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.corpus import MeasuredCorpus
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.pretokenize import PATTERNS, Split, split_words

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
_ROLES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING}


def train_bpe(
    texts: Iterable[str],
    vocab_size: int = 4096,
    min_frequency: int = 2,
    split: Split = "gpt4",
    special_tokens: Sequence[str] = (),
) -> FastTokenizer:
    """Train lossless byte-level BPE.

    Args:
        texts: Documents.
        vocab_size: Ids wanted, special tokens and the 256 bytes included.
        min_frequency: Pairs that occur less often are never merged.
        split: How text is cut into words; `gpt4` is also Llama 3's.
        special_tokens: Further special tokens after `<|endoftext|>` (0) and `<|pad|>` (1).

    Returns:
        A tokenizer with exactly `vocab_size` ids, or with as many as the text supports;
        `.training["vocab_size"]` says which.

    Raises:
        ConfigError: `vocab_size` is too small, or a special token is an ordinary word.
        DataError: No text.
    """
    special = _special_tokens(special_tokens, split)
    _require_size(vocab_size, len(special))
    backend = _byte_level(models.BPE(), split)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=BYTE_CHARACTERS,
        show_progress=False,
    )
    return _train("bpe", backend, trainer, texts, vocab_size, {"min_frequency": min_frequency, "split": split})


def train_unigram(
    texts: Iterable[str], vocab_size: int = 4096, split: Split = "gpt4", special_tokens: Sequence[str] = ()
) -> FastTokenizer:
    """Train a lossless unigram model over bytes. Arguments, result and errors are those of `train_bpe`.

    The library sums in parallel: another number of threads may give other scores.
    """
    special = _special_tokens(special_tokens, split)
    _require_size(vocab_size, len(special), learnt=1)  # asked for none, the library's trainer does not stop
    backend = _byte_level(models.Unigram(), split)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=BYTE_CHARACTERS, show_progress=False
    )
    return _train("unigram", backend, trainer, texts, vocab_size, {"split": split})


def train_byte(special_tokens: Sequence[str] = ()) -> FastTokenizer:
    """A tokenizer of the 256 bytes, without training: special tokens first, then the bytes in order."""
    special = _special_tokens(special_tokens, "gpt4")
    vocab = {piece: number for number, piece in enumerate([*map(str, special), *BYTE_CHARACTERS])}
    backend = _byte_level(models.BPE(vocab=vocab, merges=[]), "gpt4")
    backend.add_special_tokens(special)
    return FastTokenizer(backend, _ROLES, {"algo": "byte", "vocab_size": len(vocab)})


def _special_tokens(further: Sequence[str], split: Split) -> list[AddedToken]:
    contents = list(dict.fromkeys([END_OF_TEXT, PADDING, *further]))
    # A token that the split leaves whole could be learnt as an ordinary piece, and would share its id.
    if words := [content for content in contents if len(split_words(content, split)) < 2]:
        raise ConfigError(
            [f"special_tokens: {word!r} is an ordinary word" for word in words],
            "write it with signs around it, as in <|name|>",
        )
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def _require_size(vocab_size: int, special: int, learnt: int = 0) -> None:
    least = special + len(BYTE_CHARACTERS) + learnt
    if vocab_size < least:
        raise ConfigError(
            [f"vocab_size {vocab_size}: {special} special tokens, 256 bytes and {learnt} pieces need {least}"],
            f"ask for at least {least}",
        )


def _byte_level(model: models.Model, split: Split) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[split]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _train(
    algo: str,
    backend: tokenizers.Tokenizer,
    trainer: trainers.Trainer,
    texts: Iterable[str],
    vocab_size: int,
    options: dict[str, int | str],
) -> FastTokenizer:
    corpus = MeasuredCorpus(texts)
    backend.train_from_iterator(corpus, trainer)
    corpus.require_text()
    if algo == "unigram":
        _round_scores(backend)
    tokenizer = FastTokenizer(backend, _ROLES)
    asked = {"algo": algo, "vocab_size_asked": vocab_size, **options}
    tokenizer.training = asked | corpus.facts(tokenizer)
    return tokenizer


def _round_scores(backend: tokenizers.Tokenizer) -> None:
    """Keep 12 decimals of each score: the library does not read longer ones back exactly from its own file."""
    vocab = json.loads(backend.to_str())["model"]["vocab"]
    backend.model = models.Unigram([(piece, round(score, 12)) for piece, score in vocab])
