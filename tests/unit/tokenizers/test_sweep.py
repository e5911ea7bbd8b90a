"""Smaller vocabularies out of one training run."""

import json

import pytest
import tokenizers
from tokenizer_texts import HARD_STRINGS, PROSE, TEXTS

from llmt.errors import ConfigError, UsageError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import ByteTokenizer, train_bpe, train_unigram
from llmt.tokenizers.fast import FastTokenizer, PretrainedTokenizer
from llmt.tokenizers.files import TokenizerParts
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.sweep import sweep_sizes, truncate
from llmt.tokenizers.train import train_tokenizer

RECIPES = {
    "bpe": ("bpe", 420, (258, 259, 300, 391), {}),
    "gpt2": ("bpe", 420, (300,), {"split": "gpt2"}),
    "wordpiece": ("wordpiece", 700, (517, 518, 600, 650), {}),
    "fixed": ("wordpiece", 700, (600,), {"threshold": "fixed"}),
    "bert": ("wordpiece", 330, (260, 300), {"style": "bert"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_truncated_tokenizer_is_one_trained_to_that_size(name: str) -> None:
    """Same tokenizer.json, same ids on every text, same merges, same special tokens."""
    algo, full, sizes, options = RECIPES[name]
    large = train_tokenizer(algo, TEXTS, vocab_size=full, **options)
    for size in sizes:
        trained = train_tokenizer(algo, TEXTS, vocab_size=size, **options)
        cut = truncate(large, size)
        assert cut.vocab_size == trained.vocab_size == size
        assert json.loads(cut.backend.to_str())["model"] == json.loads(trained.backend.to_str())["model"]
        assert cut.fingerprint() == trained.fingerprint()
        assert cut.special_tokens == trained.special_tokens
        assert cut.get_merge_history() == trained.get_merge_history()
        for text in (PROSE, *HARD_STRINGS):
            assert cut.encode(text) == trained.encode(text)
            assert cut.decode(cut.encode(text)) == trained.decode(trained.encode(text))


def test_on_real_text(real_text: str) -> None:
    """The same on a real document, for both algorithms with merges."""
    text, other = real_text[:60_000], real_text[-20_000:]
    for algo in ("bpe", "wordpiece"):
        large = train_tokenizer(algo, [text], vocab_size=1500)
        trained = train_tokenizer(algo, [text], vocab_size=900)
        assert truncate(large, 900).encode(other) == trained.encode(other)


def test_the_points_are_those_of_trained_tokenizers() -> None:
    """The table begins with the alphabet, goes through round sizes and ends with the full one; fewer tokens each."""
    large = train_bpe(TEXTS, vocab_size=560)
    points = sweep_sizes(large, PROSE)
    assert [point.vocab_size for point in points] == [258, 500, large.vocab_size]
    for point in points:
        trained = train_bpe(TEXTS, vocab_size=point.vocab_size)
        ids = trained.encode(PROSE)
        assert point.tokens == len(ids)
        assert point.characters_per_token == len(PROSE) / len(ids)
        assert point.bytes_per_token == len(PROSE.encode()) / len(ids)
        assert point.vocabulary_used == len(set(ids)) / point.vocab_size
    assert [point.tokens for point in points] == sorted((point.tokens for point in points), reverse=True)
    assert points[0].tokens == len(PROSE.encode())


def test_sizes_of_ones_own(bpe: Tokenizer) -> None:
    """Any sizes within reach can be asked for, in any order."""
    assert [point.vocab_size for point in sweep_sizes(bpe, PROSE, [400, 300])] == [400, 300]


@pytest.mark.parametrize("size", [0, 257, 401])
def test_sizes_out_of_reach(bpe: Tokenizer, size: int) -> None:
    """Below alphabet and special tokens, or above the tokenizer's own, is an error with the range."""
    with pytest.raises(ConfigError, match="258") as caught:
        truncate(bpe, size)
    assert "400" in caught.value.hint


def test_a_foreign_bpe_keeps_its_special_tokens() -> None:
    """A tokenizer.json with special tokens at the end is cut below them, and they stay the last ids."""
    ours = train_bpe(TEXTS, vocab_size=400)
    spec = json.loads(ours.backend.to_str())
    special = [token["content"] for token in spec["added_tokens"]]
    pieces = [piece for piece in spec["model"]["vocab"] if piece not in special]
    ids = {piece: number for number, piece in enumerate([*pieces, *special])}
    spec["model"]["vocab"] = ids
    spec["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in spec["added_tokens"]]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    foreign = PretrainedTokenizer.from_parts(TokenizerParts(backend, {"eos_token": special[0]}))
    cut = truncate(foreign, 300)
    assert cut.vocab_size == 300
    assert [cut.token_to_id(token) for token in special] == [298, 299]
    assert cut.eos_token_id == 298
    same = train_bpe(TEXTS, vocab_size=300)
    assert cut.tokens(cut.encode(PROSE)) == same.tokens(same.encode(PROSE))


def test_what_has_no_smaller_self(tmp_path: object, every_kind: dict[str, FastTokenizer]) -> None:
    """Unigram, byte and a foreign WordPiece say why they cannot be cut."""
    foreign = PretrainedTokenizer.from_parts(TokenizerParts(every_kind["bert"].backend, {}))
    reasons = {
        train_unigram(TEXTS, vocab_size=280): "pruned",
        ByteTokenizer(): "no merges",
        foreign: "record of the merges",
    }
    for tokenizer, reason in reasons.items():
        with pytest.raises(UsageError, match=reason):
            sweep_sizes(tokenizer, PROSE)


def test_a_saved_tokenizer_can_be_cut(tmp_path, wordpiece: FastTokenizer) -> None:  # type: ignore[no-untyped-def]
    """The directory holds all that is needed."""
    wordpiece.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert truncate(loaded, 600).fingerprint() == truncate(wordpiece, 600).fingerprint()
