"""Byte-level BPE, unigram and plain bytes."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, TEXTS

from llmt.errors import ConfigError, DataError, MismatchError
from llmt.tokenizers.bpe import ByteTokenizer, train_bpe, train_unigram
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.fast import FastTokenizer

LOSSLESS = ("bpe", "gpt2", "byte", "unigram", "wordpiece", "prefix")


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_decoding_gives_the_text_back(every_kind: dict[str, FastTokenizer], text: str) -> None:
    """decode(encode(text)) == text for every lossless tokenizer and any text."""
    for name in LOSSLESS:
        tokenizer = every_kind[name]
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_hard_strings_come_back(every_kind: dict[str, FastTokenizer]) -> None:
    """Spaces, '#', control characters, emoji and very long words survive, and nothing is unknown."""
    for name in LOSSLESS:
        tokenizer = every_kind[name]
        assert tokenizer.is_lossless
        batch = tokenizer.encode_batch(HARD_STRINGS)
        for text, ids in zip(HARD_STRINGS, batch, strict=True):
            assert ids == tokenizer.encode(text)
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
            assert tokenizer.unk_token_id not in ids


def test_vocabulary_layout(bpe: FastTokenizer) -> None:
    """Special tokens come first, the size is exactly as asked, and all 256 bytes are there."""
    assert bpe.vocab_size == 400 == len(bpe.backend.get_vocab())
    assert (bpe.bos_token_id, bpe.eos_token_id, bpe.pad_token_id, bpe.unk_token_id) == (0, 0, 1, None)
    assert bpe.tokens([0, 1]) == ["<|endoftext|>", "<|pad|>"]
    assert set(BYTE_CHARACTERS) <= set(bpe.backend.get_vocab())
    assert bpe.training is not None
    assert bpe.training["vocab_size"] == bpe.training["vocab_size_asked"] == 400
    assert bpe.training["corpus"]["texts"] == len(TEXTS)
    assert bpe.training["corpus"]["bytes"] == sum(len(text.encode()) for text in TEXTS)


def test_text_that_supports_less() -> None:
    """A text too small for the size asked gives a smaller vocabulary, and the record says so."""
    tokenizer = train_bpe(["abab abab"], 5000)
    assert tokenizer.training is not None
    assert tokenizer.training["vocab_size"] == tokenizer.vocab_size < 300
    assert tokenizer.training["vocab_size_asked"] == 5000


def test_byte_tokenizer_is_the_bytes() -> None:
    """Byte b has id 2 + b."""
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("aé😀") == [2 + byte for byte in "aé😀".encode()]
    assert [tokenizer.token_bytes(2 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("train", [train_bpe, train_unigram])
def test_too_small_a_vocabulary(train: Callable[..., FastTokenizer]) -> None:
    """A size below special tokens and bytes is refused, and the minimum that is named works."""
    with pytest.raises(ConfigError, match="vocab_size 257") as caught:
        train(TEXTS, vocab_size=257)
    least = int(caught.value.hint.split()[-1])
    assert least <= 259
    assert train(TEXTS, vocab_size=least).vocab_size == least


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text(texts: list[str]) -> None:
    """Training on nothing is an error of the data."""
    for train in (train_bpe, train_unigram):
        with pytest.raises(DataError, match="no text"):
            train(texts, 300)


def test_special_tokens_are_not_read_from_text(every_kind: dict[str, FastTokenizer]) -> None:
    """Writing a special token's name in a document does not make the token."""
    for tokenizer in every_kind.values():
        special = {tokenizer.backend.token_to_id(token) for token in tokenizer.special_tokens.values()}
        if not tokenizer.is_lossless:
            special.discard(tokenizer.unk_token_id)  # a sign that the training text lacks is unknown
        for name in tokenizer.special_tokens.values():
            assert special.isdisjoint(tokenizer.encode(f"x{name}y {name}"))


def test_further_special_tokens() -> None:
    """More special tokens follow the first two; an ordinary word cannot be one."""
    tokenizer = train_bpe(TEXTS, 300, special_tokens=["<|user|>"])
    assert tokenizer.tokens([2]) == ["<|user|>"]
    assert tokenizer.vocab_size == 300
    assert 2 not in tokenizer.encode("<|user|>")
    assert tokenizer.decode([2]) == ""
    with pytest.raises(ConfigError, match="ordinary word"):
        train_bpe(TEXTS, 300, special_tokens=["the"])


def test_lone_surrogates(every_kind: dict[str, FastTokenizer]) -> None:
    """Half a surrogate pair counts as U+FFFD, in training and in encoding."""
    for name in LOSSLESS:
        tokenizer = every_kind[name]
        assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    train_bpe(["a\ud800b"], 300)


def test_endless_words() -> None:
    """Letters without a space for 400,000 characters are learnt from in parts, which takes a second, and come back."""
    text = "".join(random.Random(1).choices("acgt", k=400_000))
    tokenizer = train_bpe([text], 400)
    assert len(tokenizer.encode(text[:10_000])) < 6_000
    assert tokenizer.decode(tokenizer.encode(text[:10_000])) == text[:10_000]


def test_streaming_holds_incomplete_characters(every_kind: dict[str, FastTokenizer]) -> None:
    """Bytes of an emoji give None until it is whole; the pieces together are the text."""
    text = "ok 😀 日本 é end"
    for name in LOSSLESS:
        stream = every_kind[name].decode_stream()
        pieces = [stream.step(token_id) for token_id in every_kind[name].encode(text)]
        assert "".join(piece for piece in pieces if piece) == text
        assert all("\ufffd" not in piece for piece in pieces if piece)
        assert stream.flush() == ""
    byte = every_kind["byte"]
    stream = byte.decode_stream()
    assert [stream.step(token_id) for token_id in byte.encode("a😀")] == ["a", None, None, None, "😀"]
    stream.step(byte.encode("😀")[0])
    assert stream.flush() == "\ufffd"


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_streaming_any_ids(every_kind: dict[str, FastTokenizer], data: st.DataObject) -> None:
    """Random ids, as an untrained model draws them, stream to the text that decoding all of them gives."""
    for tokenizer in every_kind.values():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
        stream = tokenizer.decode_stream()
        streamed = "".join(stream.step(token_id) or "" for token_id in ids) + stream.flush()
        if tokenizer.is_lossless:
            assert streamed == tokenizer.decode(ids)


def test_offsets_are_characters(bpe: FastTokenizer) -> None:
    """Each id knows its characters in the text, also after an emoji."""
    text = "day 😀 day"
    spans = bpe.offsets(text)
    assert len(spans) == len(bpe.encode(text))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert {text[start:end] for start, end in spans} >= {"😀"}


def test_ids_that_do_not_exist(bpe: FastTokenizer) -> None:
    """An id outside the vocabulary has no text, and asking for its piece is an error."""
    assert bpe.decode([10**6]) == ""
    for token_id in (400, -1):
        with pytest.raises(MismatchError, match="0 to 399"):
            bpe.tokens([token_id])
        with pytest.raises(MismatchError):
            bpe.token_bytes(token_id)


def test_hash_seed_does_not_matter() -> None:
    """BPE and WordPiece trained in processes with different hash seeds have the same fingerprint."""
    code = (
        "import sys; sys.path.insert(0, 'tests/unit/tokenizers')\n"
        "from tokenizer_texts import TEXTS\n"
        "from llmt.tokenizers.train import train_tokenizer\n"
        "for algo in ('bpe', 'wordpiece'):\n"
        "    print(train_tokenizer(algo, TEXTS, vocab_size=700).fingerprint())"
    )
    root = Path(__file__).parents[3]
    outputs = set()
    for seed in ("0", "1"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_real_text(real_text: str) -> None:
    """On a real document the size is exact, the text comes back, and English takes 3 characters a token."""
    tokenizer = train_bpe([real_text], 4096)
    assert tokenizer.vocab_size == 4096
    ids = tokenizer.encode(real_text)
    assert tokenizer.decode(ids) == real_text
    assert len(real_text) / len(ids) > 3
