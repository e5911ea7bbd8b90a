"""text -> a WordPiece tokenizer: merges learnt by likelihood here, encoding by the `tokenizers` library."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, final, get_args

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llmt.errors import ConfigError, DataError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS, cut_pattern, to_characters
from llmt.tokenizers.corpus import MeasuredCorpus
from llmt.tokenizers.count import count_words
from llmt.tokenizers.fast import CACHE_SIZE, TrainableTokenizer
from llmt.tokenizers.files import TokenizerParts
from llmt.tokenizers.likelihood import Engine, Score, Symbols, Threshold, train_merges
from llmt.tokenizers.pretokenize import BERT_WORDS, GPT4_SPLIT, split_words
from llmt.tokenizers.progress import Progress, log_progress

Style = Literal["lossless", "bert"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_BYTES_PER_CHARACTER = 4
# Of one word: a pattern repeats a character 100,000 times at most.
MOST_CHARACTERS = 25_000
# What other characters follow within a word: a letter, a digit (of a keycap), an emoji, half a flag, kana.
_FIRSTS = ("a", "1", "\U0001f44d", "\U0001f1e9", "\u30ab")


@final
class WordPieceTokenizer(TrainableTokenizer):
    """WordPiece by likelihood (see `likelihood.train_merges` for the rule).

    Args:
        style: `lossless` cuts as GPT-4 does and merges bytes: every text comes back exactly and nothing is
            unknown. `bert` keeps words alone, in NFC: spacing is lost, and a character that the training text
            lacks is `[UNK]`.
        threshold: `anneal` or `fixed`, see `train_merges`.
        score: `likelihood` or `gain`, see `train_merges`.
        max_subword_length: Longest piece in characters; longer words are cut.
        continuation_prefix: Marks pieces that do not begin a word: two or more ASCII signs.
        limit_alphabet: `bert` only: keep this many characters, the most frequent; others are unknown.
        cache_size: How many words `encode` remembers with their ids.

    Raises:
        ConfigError: An option that cannot be.
    """

    algo = "wordpiece"
    model_type = "WordPiece"

    def __init__(
        self,
        style: Style = "lossless",
        threshold: Threshold = "anneal",
        score: Score = "likelihood",
        max_subword_length: int = 100,
        continuation_prefix: str = "##",
        limit_alphabet: int | None = None,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        options = {
            "style": style,
            "threshold": threshold,
            "score": score,
            "max_subword_length": max_subword_length,
            "continuation_prefix": continuation_prefix,
            "limit_alphabet": limit_alphabet,
        }
        super().__init__(options, cache_size)
        _check(options)
        self._style: Style = style
        self._threshold: Threshold = threshold
        self._score: Score = score
        self._longest = max_subword_length
        self._mark = continuation_prefix
        self._limit = limit_alphabet

    def train(
        self,
        texts: Iterable[str],
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        verbose: bool = False,
        progress: Progress | None = None,
        num_proc: int = 1,
        engine: Engine = "auto",
    ) -> None:
        """Merge the pair with the best score, again and again.

        Args:
            texts: Documents; read once.
            vocab_size: Ids wanted, the five special tokens included.
            min_frequency: Pairs that occur less often are never merged.
            verbose: Log the progress.
            progress: Told how far it is.
            num_proc: Processes that count words; the result is the same for any number.
            engine: What merges, see `train_merges`; the result is the same.

        Raises:
            ConfigError: A `vocab_size` below special tokens and alphabet.
            DataError: No text, or no word in it.
        """
        told = log_progress if verbose else progress
        corpus = MeasuredCorpus(texts, told)
        table = count_words(corpus, "gpt4" if self._style == "lossless" else "bert", num_proc)
        corpus.require_text()
        if not table:
            raise DataError("training text: there is no word in it", "name files that hold text")
        characters, words = self._words(table)
        alphabet = [*characters, *(self._mark + char for char in characters if self._can_continue(char))]
        self._require_size(vocab_size, len(alphabet))
        symbols = Symbols(self._mark, tuple(alphabet), reserved=len(SPECIAL_TOKENS))
        result = train_merges(
            words, vocab_size, min_frequency, self._threshold, self._score, engine, symbols, progress=told
        )
        vocab = {piece: number for number, piece in enumerate([*SPECIAL_TOKENS, *result.vocabulary])}
        self.adopt(TokenizerParts(self._backend(vocab, characters), _ROLES))
        asked = {"vocab_size_asked": vocab_size, "min_frequency": min_frequency, "engine": result.engine}
        merges = [[merge.left, merge.right, merge.piece, merge.count, merge.score] for merge in result.merges]
        self.describe({**asked, **corpus.facts(self), "merges": merges})

    def _words(self, table: Mapping[str, int]) -> tuple[list[str], dict[str, int]]:
        """The alphabet, and how often each word occurs, cut exactly as the tokenizer will cut text."""
        if self._style == "lossless":
            return BYTE_CHARACTERS, _recut(table, re.escape(self._mark[0]), self._longest, to_characters)
        characters = _alphabet(table, self._limit)
        known = set(characters)
        words = _recut(table, _others(characters), self._longest, str)
        return characters, {word: n for word, n in words.items() if word[0] in known}

    def _can_continue(self, char: str) -> bool:
        """Whether a word can have the character behind its first place."""
        if self._style == "lossless":
            return True
        return any(
            len(split_words(text, "bert")) == 1 for first in _FIRSTS for text in (first + char, first + char + first)
        )

    def _require_size(self, vocab_size: int, alphabet: int) -> None:
        least = len(SPECIAL_TOKENS) + alphabet
        if vocab_size >= least:
            return
        hint = f"ask for at least {least}"
        if self._style == "bert" and (most := (vocab_size - len(SPECIAL_TOKENS)) // 2) > 0:
            hint += f", or keep fewer characters: --limit-alphabet {most}"
        needed = f"{len(SPECIAL_TOKENS)} special tokens and an alphabet of {alphabet} need {least}"
        raise ConfigError([f"vocab_size {vocab_size}: {needed}"], hint)

    def _backend(self, vocab: dict[str, int], characters: Sequence[str]) -> tokenizers.Tokenizer:
        longest = self._longest * (_BYTES_PER_CHARACTER if self._style == "lossless" else 1)
        model = models.WordPiece(
            vocab=vocab,
            unk_token="[UNK]",
            continuing_subword_prefix=self._mark,
            max_input_chars_per_word=longest,
        )
        backend = tokenizers.Tokenizer(model)
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
        if self._style == "lossless":
            _keep_every_byte(backend, self._mark, longest)
        else:
            _keep_words(backend, self._mark, longest, characters)
        return backend


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int = 30_000,
    min_frequency: int = 2,
    progress: Progress | None = None,
    **options: Any,
) -> WordPieceTokenizer:
    """A `WordPieceTokenizer` with these options, trained.

    Returns:
        A tokenizer with exactly `vocab_size` ids, or with as many as the text supports;
        `.training["vocab_size"]` says which.

    Raises:
        ConfigError: An option that cannot be, or a `vocab_size` below special tokens and alphabet.
        DataError: No text, or no word in it.
    """
    tokenizer = WordPieceTokenizer(**options)
    tokenizer.train(texts, vocab_size, min_frequency, progress=progress)
    return tokenizer


def _check(options: Mapping[str, Any]) -> None:
    style, prefix = options["style"], options["continuation_prefix"]
    max_subword_length, limit_alphabet = options["max_subword_length"], options["limit_alphabet"]
    choices = {"style": get_args(Style), "threshold": get_args(Threshold), "score": get_args(Score)}
    problems = [
        f"{name} {options[name]!r}: it must be one of {', '.join(known)}"
        for name, known in choices.items()
        if options[name] not in known
    ]
    if len(prefix) < 2 or not all("!" <= char <= "~" and not char.isalnum() for char in prefix):
        problems.append(f"continuation_prefix {prefix!r}: it must be two or more ASCII signs, as in '##'")
    if not 1 <= max_subword_length <= MOST_CHARACTERS:
        problems.append(f"max_subword_length {max_subword_length}: it must be 1 to {MOST_CHARACTERS:,}")
    if limit_alphabet is not None and style == "lossless":
        problems.append("limit_alphabet: the alphabet of style lossless is the 256 bytes")
    if problems:
        raise ConfigError(problems)


def _alphabet(table: Mapping[str, int], limit: int | None) -> list[str]:
    """The characters of the words, sorted: all of them, or the most frequent ones."""
    counts: Counter[str] = Counter()
    for word, n in table.items():
        for char in word:
            counts[char] += n
    kept = sorted(counts, key=lambda char: (-counts[char], char))[:limit]
    return sorted(kept)


def _others(characters: Sequence[str]) -> str:
    r"""A pattern for one character that is not among these, with runs of code points written as ranges."""
    runs: list[list[int]] = []
    for code in map(ord, characters):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    inside = "".join(
        _literal(first) if first == last else f"{_literal(first)}-{_literal(last)}" for first, last in runs
    )
    return f"[^{inside}]"


def _literal(code: int) -> str:
    char = chr(code)
    return char if char.isalnum() or code > 0x7F else f"\\x{code:02x}"


def _recut(table: Mapping[str, int], alone: str, longest: int, spell: Callable[[str], str]) -> dict[str, int]:
    """The words, with every match of the pattern `alone` as a word of its own and long ones in parts."""
    mark = re.compile(f"({alone})")
    words: dict[str, int] = {}
    for word, n in table.items():
        for part in mark.split(word):
            for start in range(0, len(part), longest):
                piece = spell(part[start : start + longest])
                words[piece] = words.get(piece, 0) + n
    return words


def _keep_every_byte(backend: tokenizers.Tokenizer, prefix: str, longest: int) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated"),
            # A word that begins with the prefix itself would be read as a continuation.
            pre_tokenizers.Split(prefix[0], "isolated"),
            # The library turns a longer word into [UNK].
            pre_tokenizers.Split(Regex(cut_pattern(longest)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    strip = decoders.Replace(Regex("^" + re.escape(prefix)), "")
    backend.decoder = decoders.Sequence([strip, decoders.ByteLevel()])


def _keep_words(backend: tokenizers.Tokenizer, prefix: str, longest: int, characters: Sequence[str]) -> None:
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BERT_WORDS), "removed", invert=True),
            # Alone, a strange character is the only one that becomes [UNK].
            pre_tokenizers.Split(Regex(_others(characters)), "isolated"),
            pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{longest}}}"), "isolated"),
        ]
    )
    backend.decoder = decoders.WordPiece(prefix=prefix, cleanup=False)
