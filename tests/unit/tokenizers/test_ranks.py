"""Byte-level BPE by tiktoken: the library's ids, or not at all."""

import json
import os
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, TEXTS
from tokenizers import models, pre_tokenizers

from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.ranks import RankEncoder, rank_encoder

pytest.importorskip("tiktoken", reason="tiktoken is not installed: llmt[fast] brings it")


def _encoder(tokenizer: FastTokenizer) -> RankEncoder:
    encoder = rank_encoder(tokenizer.backend, json.loads(tokenizer.backend.to_str()))
    assert encoder is not None
    return encoder


@pytest.fixture(scope="module", params=["gpt4", "gpt2"])
def pair(request: pytest.FixtureRequest) -> tuple[FastTokenizer, RankEncoder]:
    """A tokenizer with many merges, and its other encoder."""
    draw = random.Random(3)
    letters = "aaabcdeeeiooust"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=20)) + "!\n" for _ in range(600)]
    tokenizer = train_bpe([*texts, *TEXTS], vocab_size=2500, split=request.param)
    return tokenizer, _encoder(tokenizer)


def _library(tokenizer: FastTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend.encode(text, add_special_tokens=False).ids
    return ids


def test_hard_strings(pair: tuple[FastTokenizer, RankEncoder]) -> None:
    """What is accepted gets the library's ids, special-token text included."""
    tokenizer, encoder = pair
    accepted = [text for text in (*HARD_STRINGS, *TEXTS, "a<|endoftext|>b") if encoder.accepts(text)]
    assert len(accepted) > 15
    for text in accepted:
        assert encoder.encode(text) == _library(tokenizer, text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aaeiobcdst  \n\t'\"!.1#日я\u0301\u00a0"), max_size=60))
def test_any_text(pair: tuple[FastTokenizer, RankEncoder], text: str) -> None:
    """Random text over few characters, which merge in every way, gets the library's ids."""
    tokenizer, encoder = pair
    if encoder.accepts(text):
        assert encoder.encode(text) == _library(tokenizer, text)


def test_every_accepted_character(pair: tuple[FastTokenizer, RankEncoder]) -> None:
    """Both libraries cut before, after and around every character that is accepted."""
    tokenizer, encoder = pair
    characters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    accepted = [char for char in characters if encoder.accepts(char)]
    assert len(accepted) > 30_000
    texts = [f"a{char}b {char} 1{char}1\n{char}'s" for char in accepted[:0x2800] + accepted[0x2800::7]]
    library = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, library, strict=True):
        assert encoder.encode(text) == encoding.ids, text


def test_endless_white_space_is_left_to_the_library(pair: tuple[FastTokenizer, RankEncoder]) -> None:
    """A run of white space over which tiktoken would fail is not accepted; the longest accepted one works."""
    tokenizer, encoder = pair
    assert not encoder.accepts("a" + " " * 1000)
    for text in ("a" + " \n" * 499 + "b", "a" * 5000, "!" * 5000):
        assert encoder.accepts(text)
        assert encoder.encode(text) == _library(tokenizer, text)


def test_vocabularies_that_would_differ() -> None:
    """Where two merges make one token, merges are out of order, or a token is out of reach, there is no encoder."""
    characters = [*pre_tokenizers.ByteLevel.alphabet()]
    vocab = {piece: number for number, piece in enumerate([*sorted(characters), "ab", "bc", "abc"])}

    def made(merges: list[tuple[str, str]], size: int = 259) -> RankEncoder | None:
        known = {piece: number for piece, number in vocab.items() if number < size}
        backend = tokenizers.Tokenizer(models.BPE(vocab=known, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return rank_encoder(backend, json.loads(backend.to_str()))

    assert made([("a", "b"), ("b", "c"), ("ab", "c")]) is not None
    assert made([("a", "b"), ("b", "c"), ("a", "bc")]) is None  # "abc" becomes ab, c: the token is out of reach
    assert made([("b", "c"), ("a", "b"), ("ab", "c")]) is None  # out of order
    assert made([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]) is None  # two ways to one token


def test_other_kinds_have_none(every_kind: dict[str, FastTokenizer]) -> None:
    """Unigram and WordPiece are not byte-pair encodings; plain bytes are one without merges."""
    for name, tokenizer in every_kind.items():
        encoder = rank_encoder(tokenizer.backend, json.loads(tokenizer.backend.to_str()))
        assert (encoder is not None) == (name in ("bpe", "gpt2", "byte"))


@pytest.mark.slow
def test_real_text(real_text: str) -> None:
    """Every file of real text, with a vocabulary of llmt's and with GPT-2's, gets the library's ids."""
    folder = Path(os.environ["TEST_DATA_DIR"])
    gpt2 = tokenizers.Tokenizer(
        models.BPE.from_file(*(str(folder / "gpt2-tokenizer" / name) for name in ("vocab.json", "merges.txt")))
    )
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for backend in (train_bpe([real_text], 8000).backend, gpt2):
        encoder = rank_encoder(backend, json.loads(backend.to_str()))
        assert encoder is not None
        for path in sorted(folder.glob("*.*")):
            lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
            accepted = [line for line in lines if encoder.accepts(line)]
            assert len(accepted) > 0.5 * len(lines)
            library = backend.encode_batch(accepted, add_special_tokens=False)
            assert [encoder.encode(line) for line in accepted] == [encoding.ids for encoding in library]
