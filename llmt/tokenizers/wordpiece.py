"""text -> a WordPiece tokenizer: merges learnt by likelihood here, encoding by the `tokenizers` library."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llmt.errors import ConfigError, DataError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS, cut_pattern, to_characters
from llmt.tokenizers.corpus import MeasuredCorpus
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.likelihood import MergeResult, Progress, Threshold, train_merges
from llmt.tokenizers.pretokenize import BERT_WORDS, GPT4_SPLIT, count_words

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


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int = 30_000,
    min_frequency: int = 2,
    style: Style = "lossless",
    threshold: Threshold = "anneal",
    max_subword_length: int = 100,
    continuation_prefix: str = "##",
    progress: Progress | None = None,
) -> FastTokenizer:
    """Train WordPiece by likelihood (see `likelihood.train_merges` for the rule).

    Args:
        texts: Documents.
        vocab_size: Ids wanted, the five special tokens included.
        min_frequency: Pairs that occur less often are never merged.
        style: `lossless` cuts as GPT-4 does and merges bytes: every text comes back exactly and nothing is
            unknown. `bert` keeps words alone, in NFC: spacing is lost, and a word with a character that the
            training text lacks is `[UNK]`.
        threshold: `anneal` or `fixed`, see `train_merges`.
        max_subword_length: Longest word: in UTF-8 bytes for `lossless`, which cuts longer words; in
            characters for `bert`, which makes them `[UNK]`.
        continuation_prefix: Marks pieces that do not begin a word: two or more ASCII signs.
        progress: Called with (ids so far, `vocab_size`).

    Returns:
        A tokenizer with exactly `vocab_size` ids, or with as many as the text supports;
        `.training["vocab_size"]` says which.

    Raises:
        ConfigError: An option that cannot be, or a `vocab_size` below special tokens and alphabet.
        DataError: No text, or no word in it.
    """
    _check(style, max_subword_length, continuation_prefix)
    corpus = MeasuredCorpus(texts)
    table = count_words(corpus, "gpt4" if style == "lossless" else "bert")
    corpus.require_text()
    if style == "lossless":
        words = _byte_words(table, continuation_prefix, max_subword_length)
        alphabet = [*BYTE_CHARACTERS, *(continuation_prefix + char for char in BYTE_CHARACTERS)]
    else:
        words = {word: n for word, n in table.items() if len(word) <= max_subword_length}
        alphabet = []
    if not words:
        raise DataError("training text: there is no word in it", "name files that hold text")
    result = train_merges(
        words,
        vocab_size,
        min_frequency,
        threshold,
        continuation_prefix,
        alphabet,
        reserved=len(SPECIAL_TOKENS),
        progress=progress,
    )
    vocab = {piece: number for number, piece in enumerate([*SPECIAL_TOKENS, *result.vocabulary])}
    build = _lossless_backend if style == "lossless" else _bert_backend
    tokenizer = FastTokenizer(build(vocab, continuation_prefix, max_subword_length), _ROLES)
    asked = {
        "algo": "wordpiece",
        "vocab_size_asked": vocab_size,
        "min_frequency": min_frequency,
        "style": style,
        "threshold": threshold,
        "max_subword_length": max_subword_length,
        "continuation_prefix": continuation_prefix,
    }
    tokenizer.training = asked | corpus.facts(tokenizer) | _merge_record(result)
    return tokenizer


def _check(style: Style, max_subword_length: int, prefix: str) -> None:
    problems = []
    if len(prefix) < 2 or not all("!" <= char <= "~" and not char.isalnum() for char in prefix):
        problems.append(f"continuation_prefix {prefix!r}: it must be two or more ASCII signs, as in '##'")
    least = 4 if style == "lossless" else 1  # four bytes hold any character
    if max_subword_length < least:
        problems.append(f"max_subword_length {max_subword_length}: it must be at least {least}")
    if problems:
        raise ConfigError(problems)


def _byte_words(table: Mapping[str, int], prefix: str, max_bytes: int) -> dict[str, int]:
    """Words in byte characters, cut exactly as the tokenizer will cut them."""
    limit = max_bytes // 4
    mark = re.compile(f"({re.escape(prefix[0])})")
    words: dict[str, int] = {}
    for word, n in table.items():
        for part in mark.split(word):
            for start in range(0, len(part), limit):
                piece = to_characters(part[start : start + limit])
                words[piece] = words.get(piece, 0) + n
    return words


def _lossless_backend(vocab: dict[str, int], prefix: str, max_bytes: int) -> tokenizers.Tokenizer:
    backend = _backend(vocab, prefix, max_bytes)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4_SPLIT), "isolated"),
            # A word that begins with the prefix itself would be read as a continuation.
            pre_tokenizers.Split(prefix[0], "isolated"),
            # The library turns a longer word into [UNK].
            pre_tokenizers.Split(Regex(cut_pattern(max_bytes)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    strip = decoders.Replace(Regex("^" + re.escape(prefix)), "")
    backend.decoder = decoders.Sequence([strip, decoders.ByteLevel()])
    return backend


def _bert_backend(vocab: dict[str, int], prefix: str, max_characters: int) -> tokenizers.Tokenizer:
    backend = _backend(vocab, prefix, max_characters)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(BERT_WORDS), "removed", invert=True)
    backend.decoder = decoders.WordPiece(prefix=prefix, cleanup=False)
    return backend


def _backend(vocab: dict[str, int], prefix: str, max_length: int) -> tokenizers.Tokenizer:
    model = models.WordPiece(
        vocab=vocab,
        unk_token="[UNK]",
        continuing_subword_prefix=prefix,
        max_input_chars_per_word=max_length,
    )
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


def _merge_record(result: MergeResult) -> dict[str, Any]:
    return {"merges": [[merge.left, merge.right, merge.count, merge.score] for merge in result.merges]}
