"""The report on a text, and choosing an algorithm by name."""

import pytest
from tokenizer_texts import PROSE, TEXTS

from llmt.errors import DataError, UsageError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.compare import compare_tokenizers
from llmt.tokenizers.inspect import PROBES, inspect_tokenizer, probe
from llmt.tokenizers.train import MAKING, train_tokenizer


def test_report_adds_up(bpe: Tokenizer) -> None:
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
    lengths = {len(bpe.token_bytes(token_id).decode(errors="ignore")) for token_id in ids}
    assert len(report.longest[0]) == max(lengths)


def test_report_on_a_lossy_tokenizer(bert: Tokenizer) -> None:
    """Unknown tokens are counted, and the text is known not to come back."""
    report = inspect_tokenizer(bert, "the day 😀 😀")
    assert report.unknown_share == pytest.approx(2 / report.tokens)
    assert not report.roundtrip
    assert report.words == 4


def test_nothing_to_report_on(bert: Tokenizer) -> None:
    """A text without tokens is an error of the data."""
    for text in ("", "  "):
        with pytest.raises(DataError):
            inspect_tokenizer(bert, text)


def test_white_space_alone_is_a_text(bpe: Tokenizer) -> None:
    """A tokenizer that keeps spaces has tokens for a text of spaces."""
    report = inspect_tokenizer(bpe, " \n\t")
    assert (report.characters, report.words, report.tokens_per_word, report.roundtrip) == (3, 0, 0.0, True)


def test_probes_say_what_becomes_of_digits_and_spaces(every_kind: dict[str, Tokenizer]) -> None:
    """Each probe is cut as `encode` cuts it, and comes back where the tokenizer loses nothing."""
    for name, tokenizer in every_kind.items():
        found = probe(tokenizer)
        assert [item.text for item in found] == list(PROBES)
        for item in found:
            assert [token.token_id for token in item.tokens] == tokenizer.encode(item.text), name
            assert item.roundtrip == (tokenizer.decode(tokenizer.encode(item.text)) == item.text), name
            assert item.roundtrip or not tokenizer.is_lossless, name


def test_comparison_rows_are_the_reports(every_kind: dict[str, Tokenizer]) -> None:
    """Each row repeats the report of its tokenizer on the same text, in the order given."""
    rows = compare_tokenizers(every_kind, PROSE)
    assert [row.name for row in rows] == list(every_kind)
    for row in rows:
        report = inspect_tokenizer(every_kind[row.name], PROSE)
        for field in ("vocab_size", "tokens", "characters_per_token", "bytes_per_token", "tokens_per_word"):
            assert getattr(row, field) == getattr(report, field)
        assert row.tokens == len(every_kind[row.name].encode(PROSE))
        assert (row.unknown_share, row.roundtrip, row.vocabulary_used) == (
            report.unknown_share, report.roundtrip, report.vocabulary_used,
        )  # fmt: skip


def test_a_comparison_that_fails_names_the_tokenizer(every_kind: dict[str, Tokenizer]) -> None:
    """A tokenizer that makes nothing of the text is called by its name."""
    with pytest.raises(DataError, match=r"^bert: "):
        compare_tokenizers(every_kind, "  ")


@pytest.mark.parametrize("algo", MAKING)
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
