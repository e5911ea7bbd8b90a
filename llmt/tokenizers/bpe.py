"""text -> byte-level tokenizers that lose nothing, trained by the `tokenizers` library.

Byte-level BPE is that of GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019);
the unigram model is that of Kudo, "Subword regularization", 2018, over the same 256 byte characters.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final, get_args

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from llmt.errors import ConfigError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.corpus import MeasuredCorpus
from llmt.tokenizers.fast import CACHE_SIZE, TrainableTokenizer
from llmt.tokenizers.files import TokenizerParts
from llmt.tokenizers.pretokenize import PATTERNS, Split, split_words
from llmt.tokenizers.progress import Progress, log_progress

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
MOST_TOKENS = 1_000_000
_ENDLESS = re.compile(r"\S{1000}")
_ROLES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING}


class _ByteLevelTokenizer(TrainableTokenizer):
    """What the byte-level types share.

    Args:
        split: How text is cut into words; `gpt4` is also Llama 3's.
        special_tokens: Further special tokens after `<|endoftext|>` (0) and `<|pad|>` (1).
        cache_size: How many words `encode` remembers with their ids.

    Raises:
        ConfigError: A special token is an ordinary word.
    """

    def __init__(self, split: Split = "gpt4", special_tokens: Sequence[str] = (), cache_size: int = CACHE_SIZE) -> None:
        super().__init__({"split": split, "special_tokens": list(special_tokens)}, cache_size)
        if split not in get_args(Split):
            raise ConfigError([f"split {split!r}: it must be one of {', '.join(get_args(Split))}"])
        self._split: Split = split
        self._special = _special_tokens(special_tokens, split)

    def _learn(
        self, model: models.Model, trainer: trainers.Trainer, texts: Iterable[str], asked: Mapping[str, Any],
        progress: Progress | None,
    ) -> None:  # fmt: skip
        backend = _byte_level(model, self._split)
        corpus = MeasuredCorpus(texts, progress)
        backend.train_from_iterator(_without_endless_words(corpus), trainer)
        corpus.require_text()
        if self.algo == "unigram":
            _round_scores(backend)
        self._finish(backend, asked, corpus)

    def _finish(self, backend: tokenizers.Tokenizer, asked: Mapping[str, Any], corpus: MeasuredCorpus) -> None:
        self.adopt(TokenizerParts(backend, _ROLES))
        self.describe({**asked, **corpus.facts(self)})


@final
class BPETokenizer(_ByteLevelTokenizer):
    """Lossless byte-level BPE."""

    algo = "bpe"
    model_type = "BPE"

    def train(
        self,
        texts: Iterable[str],
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        verbose: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Merge the most frequent pair of neighbours, again and again."""
        _require_size(vocab_size, len(self._special))
        if min_frequency < 0:
            raise ConfigError([f"min_frequency {min_frequency}: it must be 0 or more"])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=self._special,
            initial_alphabet=BYTE_CHARACTERS,
            show_progress=False,
        )
        asked = {"vocab_size_asked": vocab_size, "min_frequency": min_frequency}
        self._learn(models.BPE(), trainer, texts, asked, log_progress if verbose else progress)


@final
class UnigramTokenizer(_ByteLevelTokenizer):
    """A lossless unigram model over bytes.

    The library sums in the order of a hash table of its own: two trainings on one text give other scores, and may
    give other pieces.
    """

    algo = "unigram"
    model_type = "Unigram"

    def train(
        self,
        texts: Iterable[str],
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        verbose: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Begin with many pieces and drop the least useful; the method has no `min_frequency`."""
        # Asked for no piece to learn, the library's trainer does not stop.
        _require_size(vocab_size, len(self._special), learnt=1)
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size,
            special_tokens=self._special,
            initial_alphabet=BYTE_CHARACTERS,
            show_progress=False,
        )
        asked = {"vocab_size_asked": vocab_size}
        self._learn(models.Unigram(), trainer, texts, asked, log_progress if verbose else progress)


@final
class ByteTokenizer(_ByteLevelTokenizer):
    """The 256 bytes, in order after the special tokens. It is ready without training."""

    algo = "byte"
    model_type = "BPE"

    def __init__(self, split: Split = "gpt4", special_tokens: Sequence[str] = (), cache_size: int = CACHE_SIZE) -> None:
        super().__init__(split, special_tokens, cache_size)
        self.train(())

    def train(
        self,
        texts: Iterable[str],
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        verbose: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """There is nothing to learn: no argument is read."""
        vocab = {piece: number for number, piece in enumerate([*map(str, self._special), *BYTE_CHARACTERS])}
        backend = _byte_level(models.BPE(vocab=vocab, merges=[]), self._split)
        backend.add_special_tokens(self._special)
        self.adopt(TokenizerParts(backend, _ROLES))
        self.describe({"vocab_size": len(vocab)})


def train_bpe(
    texts: Iterable[str],
    vocab_size: int = 4096,
    min_frequency: int = 2,
    split: Split = "gpt4",
    special_tokens: Sequence[str] = (),
) -> BPETokenizer:
    """A `BPETokenizer` with these options, trained.

    Returns:
        A tokenizer with exactly `vocab_size` ids, or with as many as the text supports;
        `.training["vocab_size"]` says which.

    Raises:
        ConfigError: `vocab_size` is too small, or a special token is an ordinary word.
        DataError: No text.
    """
    tokenizer = BPETokenizer(split, special_tokens)
    tokenizer.train(texts, vocab_size, min_frequency)
    return tokenizer


def train_unigram(
    texts: Iterable[str], vocab_size: int = 4096, split: Split = "gpt4", special_tokens: Sequence[str] = ()
) -> UnigramTokenizer:
    """A `UnigramTokenizer` with these options, trained; result and errors as for `train_bpe`."""
    tokenizer = UnigramTokenizer(split, special_tokens)
    tokenizer.train(texts, vocab_size)
    return tokenizer


def _without_endless_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, in parts where nothing but visible characters follow one another for too long.

    The trainers take time that grows with the square of a word's length.
    """
    for text in texts:
        start = 0
        for run in _ENDLESS.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


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
    if vocab_size > MOST_TOKENS:
        raise ConfigError([f"vocab_size {vocab_size}: it can be {MOST_TOKENS:,} at most"])
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


def _round_scores(backend: tokenizers.Tokenizer) -> None:
    """Keep 12 decimals of each score: the library does not read longer ones back exactly from its own file."""
    vocab = json.loads(backend.to_str())["model"]["vocab"]
    backend.model = models.Unigram([(piece, round(score, 12)) for piece, score in vocab])
