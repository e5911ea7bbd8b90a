"""The report on a text, and choosing an algorithm by name."""

import pytest
from tokenizer_texts import PROSE, TEXTS

from llmt.errors import DataError, UsageError
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.inspect import inspect_tokenizer
from llmt.tokenizers.train import OPTIONS, train_tokenizer


def test_report_adds_up(bpe: FastTokenizer) -> None:
    """The figures are those of the segmentation."""
    report = inspect_tokenizer(bpe, PROSE)
    ids = [token_id for _, token_id in report.segmentation]
    assert ids == bpe.encode(PROSE)
    assert report.tokens == len(ids)
    assert report.vocab_size == 400
    assert report.characters_per_token == pytest.approx(len(PROSE) / len(ids))
    assert report.bytes_per_token == pytest.approx(len(PROSE.encode()) / len(ids))
    assert report.vocabulary_used == pytest.approx(len(set(ids)) / 400)
    assert report.tokens_per_word == pytest.approx(len(ids) / report.words)
    assert report.unknown_share == 0
    assert report.roundtrip
    assert len(report.longest[0]) == max(len(piece) for piece, _ in report.segmentation)


def test_report_on_a_lossy_tokenizer(bert: FastTokenizer) -> None:
    """Unknown tokens are counted, and the text is known not to come back."""
    report = inspect_tokenizer(bert, "the day 😀 😀")
    assert report.unknown_share == pytest.approx(2 / report.tokens)
    assert not report.roundtrip
    assert report.words == 4


def test_nothing_to_report_on(bert: FastTokenizer) -> None:
    """A text without tokens is an error of the data."""
    for text in ("", "  "):
        with pytest.raises(DataError):
            inspect_tokenizer(bert, text)


@pytest.mark.parametrize("algo", OPTIONS)
def test_every_algorithm_by_name(algo: str) -> None:
    """One call with all options of a configuration section trains any algorithm."""
    tokenizer = train_tokenizer(
        algo,
        TEXTS,
        vocab_size=600,
        min_frequency=2,
        split="gpt4",
        style="lossless",
        threshold="anneal",
        max_subword_length=100,
        continuation_prefix="##",
    )
    assert tokenizer.training is not None
    assert tokenizer.training["algo"] == algo
    assert tokenizer.decode(tokenizer.encode(PROSE)) == PROSE
    assert tokenizer.vocab_size == 258 if algo == "byte" else 258 < tokenizer.vocab_size <= 600


def test_names_that_do_not_exist() -> None:
    """An unknown algorithm or option is refused and the choices are listed."""
    with pytest.raises(UsageError, match="'word'") as caught:
        train_tokenizer("word", TEXTS)
    assert "wordpiece" in caught.value.hint
    with pytest.raises(UsageError, match="vocabsize"):
        train_tokenizer("bpe", TEXTS, vocabsize=3)
