"""Which tokens a text uses, and which no text can."""

import json
import random

import pytest
import tokenizers
from tokenizer_texts import HARD_STRINGS, PROSE, TEXTS

from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import ByteTokenizer, train_bpe
from llmt.tokenizers.fast import PretrainedTokenizer
from llmt.tokenizers.files import TokenizerParts
from llmt.tokenizers.spans import label
from llmt.tokenizers.vocabulary import (
    VocabularyReport,
    find_contexts,
    find_unreachable,
    measure_vocabulary,
    special_ids,
)

EVERY_NAME = ("bpe", "gpt2", "byte", "unigram", "wordpiece", "prefix", "bert")


def measure(tokenizer: Tokenizer, text: str, limit: int = 100_000) -> VocabularyReport:
    """The report on all dead tokens."""
    return measure_vocabulary(tokenizer, text, tokenizer.encode(text), limit)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_used_and_dead_are_the_vocabulary(every_kind: dict[str, Tokenizer], name: str) -> None:
    """Used and dead tokens are counted as a set would; every dead one is special, checked or not checked."""
    tokenizer = every_kind[name]
    report = measure(tokenizer, PROSE)
    used = set(tokenizer.encode(PROSE))
    assert report.used == len(used)
    assert report.used + report.dead == tokenizer.vocab_size
    assert report.dead_share == pytest.approx(1 - len(used) / tokenizer.vocab_size)
    assert report.dead_special + report.checked + report.unchecked == report.dead
    assert report.reached + report.unreachable == report.checked
    dead = {label(tokenizer, token_id) for token_id in range(tokenizer.vocab_size) if token_id not in used}
    assert set(report.dead_examples) <= dead


@pytest.mark.parametrize("name", EVERY_NAME)
def test_special_tokens_are_those_of_the_tokenizer(every_kind: dict[str, Tokenizer], name: str) -> None:
    """Special ids are those of the roles; a further one without a role counts as well."""
    tokenizer = every_kind[name]
    ids = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens.values()}
    assert special_ids(tokenizer) == ids


def test_special_tokens_without_a_role() -> None:
    """An added special token that has no role is special too."""
    tokenizer = train_bpe(TEXTS, vocab_size=300, special_tokens=["<|user|>"])
    assert special_ids(tokenizer) == {0, 1, tokenizer.token_to_id("<|user|>")}


@pytest.mark.parametrize("name", EVERY_NAME)
def test_unreachable_tokens_are_never_met(every_kind: dict[str, Tokenizer], name: str) -> None:
    """Not one of 3,000 random texts made of the vocabulary's own pieces brings forth a token called unreachable."""
    tokenizer = every_kind[name]
    special = special_ids(tokenizer)
    data = {n: tokenizer.token_bytes(n) for n in range(tokenizer.vocab_size) if n not in special}
    texts = {n: part.decode() for n, part in data.items() if _is_text(part)}
    lost, _ = find_unreachable(tokenizer, texts, find_contexts(PROSE, data.values()))
    choose = random.Random(0)
    pieces = [*texts.values(), *HARD_STRINGS]
    random_texts = ["".join(choose.choices(pieces, k=choose.randint(1, 6))) for _ in range(3000)]
    met = {token_id for ids in tokenizer.encode_batch(random_texts) for token_id in ids}
    assert not met & lost


def _is_text(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def test_bytes_that_utf8_never_has_are_out_of_reach() -> None:
    """C0, C1 and F5 to FF are in every byte vocabulary and in no text."""
    report = measure(ByteTokenizer(), "a")
    assert report.unreachable == 13
    assert report.unreachable_examples == [f"<{byte:02X}>" for byte in (0xC0, 0xC1, *range(0xF5, 0xFD))]


def test_a_piece_that_is_always_merged_away_is_out_of_reach() -> None:
    """A piece whose merge an earlier merge always forestalls is found, and so is one that spans two words."""
    ours = train_bpe(TEXTS, vocab_size=300)
    spec = json.loads(ours.backend.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    size = len(vocab)
    # In "zqz" the merge of "qz" comes before that of "zq", so "zq" + "z" never meet.
    for number, piece in enumerate(("qz", "zq", "zqz")):
        vocab[piece] = size + number
    merges += [["q", "z"], ["z", "q"], ["zq", "z"]]
    vocab["no\u0120space"] = size + 3
    spec["model"]["vocab"], spec["model"]["merges"] = vocab, merges
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    foreign = PretrainedTokenizer.from_parts(TokenizerParts(backend, {}))
    report = measure(foreign, PROSE)
    assert set(report.unreachable_examples[:2]) == {"no space", "zqz"}
    assert report.unreachable == 13 + 2


def test_the_limit_is_kept(bpe: Tokenizer) -> None:
    """No more dead tokens than asked are checked, and the rest is said to be unchecked."""
    every = measure(bpe, PROSE)
    for limit in (0, 1, 10):
        some = measure(bpe, PROSE, limit)
        assert some.checked <= limit
        assert (some.used, some.dead, some.dead_special) == (every.used, every.dead, every.dead_special)
        assert some.checked + some.unchecked == every.checked + every.unchecked
