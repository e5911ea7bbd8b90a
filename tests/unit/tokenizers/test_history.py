"""How words are built, merge by merge."""

import pytest
from tokenizer_texts import PROSE, TEXTS

from llmt.errors import ModelFileError, UsageError
from llmt.tokenizers.base import MergeStep, Tokenizer
from llmt.tokenizers.bpe import ByteTokenizer, train_unigram
from llmt.tokenizers.history import WordHistory, word_histories
from llmt.tokenizers.wordpiece import train_wordpiece

WORDS = sorted({word for word in PROSE.split() if word.isalpha()})


def naive_bpe(symbols: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Every merge in the order of learning, each over the whole word."""
    for left, right in merges:
        place = 0
        while place < len(symbols) - 1:
            if (symbols[place], symbols[place + 1]) == (left, right):
                symbols[place : place + 2] = [left + right]
            place += 1
    return symbols


@pytest.mark.parametrize("word", WORDS)
def test_bpe_merges_build_the_word(bpe: Tokenizer, word: str) -> None:
    """Carrying out the merges shown, and no others, gives the tokens of the word."""
    (history,) = word_histories(bpe, word)
    ids = bpe.encode(word)
    assert [token.token_id for token in history.tokens] == ids
    characters = list("".join(bpe.tokens(ids)))
    assert naive_bpe(characters, [(merge.left, merge.right) for merge in history.merges]) == bpe.tokens(ids)
    known = bpe.get_merge_history()
    for merge in history.merges:
        step = known[merge.rank - 1]
        assert (merge.left, merge.right, merge.piece) == (step["left"], step["right"], step["piece"])
    assert [merge.rank for merge in history.merges] == sorted({merge.rank for merge in history.merges})


@pytest.mark.parametrize("word", WORDS)
def test_wordpiece_merges_make_every_piece(wordpiece: Tokenizer, bert: Tokenizer, word: str) -> None:
    """Each token is a single symbol or made by a merge whose halves are made before it, with its count and score."""
    for tokenizer in (wordpiece, bert):
        (history,) = word_histories(tokenizer, word)
        assert [token.token_id for token in history.tokens] == tokenizer.encode(word)
        made = {merge.piece for merge in history.merges}
        for number, merge in enumerate(history.merges):
            assert merge.piece == merge.left + merge.right.removeprefix("##")
            assert merge.count is not None
            assert merge.count >= 2
            assert merge.score is not None
            assert merge.score > 0
            earlier = {before.piece for before in history.merges[:number]}
            for half in (merge.left, merge.right):
                assert half in earlier or len(half.removeprefix("##")) == 1
        for token in history.tokens:
            assert token.piece in made or len(token.piece.removeprefix("##")) == 1 or token.kind == "unknown"


def test_several_words_have_a_history_each(bpe: Tokenizer) -> None:
    """White space separates words, at the ends too."""
    assert [history.word for history in word_histories(bpe, "  the  carry\n")] == ["the", "carry"]


def test_merges_are_shown_as_text(bpe: Tokenizer) -> None:
    """Halves of characters are written as bytes, and whole characters as themselves."""
    merges = [merge for word in ("Müller", "Über") for merge in word_histories(bpe, word)[0].merges]
    assert any(merge.shown == ("<C3>", "<BC>", "ü") for merge in merges)


def test_there_is_no_history_without_merges() -> None:
    """Unigram and byte tokenizers are refused by name, and so is a word that is none."""
    for tokenizer in (ByteTokenizer(), train_unigram(TEXTS, vocab_size=280)):
        with pytest.raises(UsageError, match=type(tokenizer).__name__):
            word_histories(tokenizer, "word")
    with pytest.raises(UsageError, match="no word"):
        word_histories(ByteTokenizer(), "  ")


def test_damaged_and_circular_records_end() -> None:
    """A record that is no list of merges is a damaged file; one that goes in circles comes to an end."""
    tokenizer = train_wordpiece(TEXTS, vocab_size=620)
    record = dict(tokenizer.training or {})
    tokenizer.describe({**record, "merges": [[1, 2]]})
    with pytest.raises(ModelFileError, match="merges"):
        word_histories(tokenizer, "carry")
    circle = [["a", "##b", "ab", 2, 0.5], ["ab", "##c", "a", 2, 0.5]]
    tokenizer.describe({**record, "merges": circle})
    assert isinstance(word_histories(tokenizer, "a ab b")[0], WordHistory)


def test_steps_have_the_fields_of_a_merge(bpe: Tokenizer) -> None:
    """What the tokenizer keeps of a merge is what a history needs."""
    assert set(bpe.get_merge_history()[0]) == set(MergeStep.__annotations__)
