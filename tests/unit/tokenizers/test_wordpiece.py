"""WordPiece as a tokenizer: both styles, their sizes, records and limits."""

import re

import pytest
from tokenizer_texts import TEXTS

from llmt.errors import ConfigError, DataError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.progress import TrainingProgress
from llmt.tokenizers.wordpiece import SPECIAL_TOKENS, train_wordpiece


def test_vocabulary_layout(wordpiece: FastTokenizer) -> None:
    """BERT's special tokens are ids 0 to 4, the size is exact, and every byte has both forms."""
    assert wordpiece.vocab_size == 650
    assert wordpiece.tokens(range(5)) == list(SPECIAL_TOKENS)
    roles = (wordpiece.pad_token_id, wordpiece.unk_token_id, wordpiece.bos_token_id, wordpiece.eos_token_id)
    assert roles == (0, 1, 2, 3)
    vocabulary = wordpiece.backend.get_vocab()
    assert vocabulary.keys() >= {*BYTE_CHARACTERS, *("##" + char for char in BYTE_CHARACTERS)}


def test_record_of_the_training(wordpiece: FastTokenizer) -> None:
    """The record holds every merge with count and score, in the order of the ids."""
    record = wordpiece.training
    assert record is not None
    assert record["vocab_size"] == record["vocab_size_asked"] == 650
    merges = record["merges"]
    assert len(merges) == 650 - 5 - 512
    for token_id, (left, right, piece, count, score) in enumerate(merges, start=5 + 512):
        assert wordpiece.tokens([token_id]) == [piece] == [left + right.removeprefix("##")]
        assert count >= 2
        assert 0 < score <= 1
    assert record["characters_per_token"] > 1


def test_encoding_is_longest_match(wordpiece: FastTokenizer) -> None:
    """Every word is cut by the longest piece that fits, from the left."""
    vocabulary = wordpiece.backend.get_vocab()
    for text in TEXTS[:1]:
        words = [word for word, _ in wordpiece.backend.pre_tokenizer.pre_tokenize_str(text)]
        expected = []
        for word in words:
            start = 0
            while start < len(word):
                prefix = "##" if start else ""
                end = next(e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary)
                expected.append(prefix + word[start:end])
                start = end
        assert wordpiece.tokens(wordpiece.encode(text)) == expected


def test_bert_style(bert: FastTokenizer) -> None:
    """Words alone in NFC: spacing is lost, é is one character however it is spelt, a strange character is [UNK]."""
    assert not bert.is_lossless
    assert bert.decode(bert.encode("The   day,\nwas")) == "The day , was"
    assert bert.encode("Bru\u0308cke") == bert.encode("Br\u00fccke")
    assert bert.tokens(bert.encode("the 😀")) == ["the", "[UNK]"]
    assert bert.tokens(bert.encode("theßday")) == ["the", "[UNK]", "day"]
    assert bert.decode(bert.encode("day" * 40)) == "day" * 33 + "d ay" + "day" * 6  # cut after 100 characters


def test_long_words_are_cut_when_lossless() -> None:
    """Words beyond the limit are cut in training and encoding alike, so no piece is longer and none unknown."""
    tokenizer = train_wordpiece(["abcdefghij" * 30] * 5, 600, max_subword_length=40)
    assert max(len(tokenizer.token_bytes(token_id)) for token_id in range(5, tokenizer.vocab_size)) == 40
    assert tokenizer.decode(tokenizer.encode("abcdefghij" * 9)) == "abcdefghij" * 9


@pytest.mark.parametrize("style", ["lossless", "bert"])
def test_too_small_a_vocabulary(style: str) -> None:
    """A size below special tokens and alphabet is refused, and the minimum that is named works."""
    with pytest.raises(ConfigError) as caught:
        train_wordpiece(TEXTS, 10, style=style)
    least = int(re.findall(r"at least (\d+)", caught.value.hint)[0])
    assert style != "lossless" or least == 5 + 512
    assert train_wordpiece(TEXTS, least, style=style).vocab_size == least


def test_no_text() -> None:
    """Nothing to train on is an error of the data; so is white space alone."""
    for style in ("lossless", "bert"):
        with pytest.raises(DataError, match="no text"):
            train_wordpiece([""], 600, style=style)
        with pytest.raises(DataError, match="no text"):
            train_wordpiece(["  \n", "\t"], 600, style=style)


@pytest.mark.parametrize("prefix", ["#", "", "ab", "é#", "# "])
def test_prefix_that_cannot_be(prefix: str) -> None:
    """A continuation prefix must be two or more ASCII signs, or text would be taken for it."""
    with pytest.raises(ConfigError, match="continuation_prefix"):
        train_wordpiece(TEXTS, 600, continuation_prefix=prefix)


def test_length_that_cannot_be() -> None:
    """A limit that cannot hold one character is refused."""
    with pytest.raises(ConfigError, match="max_subword_length 0"):
        train_wordpiece(TEXTS, 600, max_subword_length=0)


def test_progress() -> None:
    """The callback counts ids up to the size asked."""
    calls: list[TrainingProgress] = []
    train_wordpiece(TEXTS, 560, progress=calls.append)
    assert (calls[-1].stage, calls[-1].done, calls[-1].total) == ("merging", 560, 560)


def test_annealing_is_what_makes_english_short(real_text: str) -> None:
    """At 3,000 ids annealed merges take over 3 characters a token and plain ones under 2; both come back."""
    part = real_text[:200_000]
    annealed = train_wordpiece([part], 3000)
    fixed = train_wordpiece([part], 3000, threshold="fixed")
    lengths = []
    for tokenizer in (annealed, fixed):
        ids = tokenizer.encode(part)
        assert tokenizer.vocab_size == 3000
        assert tokenizer.decode(ids) == part
        lengths.append(len(part) / len(ids))
    assert lengths[0] > 3
    assert lengths[1] < 2
