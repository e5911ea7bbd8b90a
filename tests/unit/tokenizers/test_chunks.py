"""Encoding by chunks gives the ids of the library, whatever the text."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, PROSE
from tokenizers import models, normalizers, pre_tokenizers

from llmt.tokenizers import chunks
from llmt.tokenizers.chunks import ChunkEncoder, Cut, find_cut
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.pretokenize import BERT_WORDS, GPT2_SPLIT, GPT4_SPLIT

KINDS = ("bpe", "gpt2", "byte", "unigram", "wordpiece", "prefix", "bert")
DIFFERENT = ("bpe", "gpt2", "bert")
"""Kinds that cut text differently."""
WHITE = [
    *(chr(code) for code in (*range(9, 14), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x200C))),
    *"\u2028\u2029\u202f\u205f\u2060\u3000\ufeff",
]
TEXT = st.text(
    st.one_of(
        st.sampled_from(WHITE),
        st.sampled_from("aAsStTré日 \n'’#.,_-!1230²½\u0301\u0345\u200d\ufe0f👩🏽"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=40,
)


def _spec(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(backend.to_str())
    return spec


def _encoder(backend: tokenizers.Tokenizer, capacity: int = 10_000) -> ChunkEncoder:
    cut = find_cut(_spec(backend))
    assert cut is not None
    return ChunkEncoder(backend, cut, capacity)


def _reference(backend: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]


def _files() -> Iterator[Path]:
    folder = os.environ.get("TEST_DATA_DIR")
    if not folder:
        pytest.skip("TEST_DATA_DIR is not set: no real text")
    yield from (path for path in sorted(Path(folder).iterdir()) if path.suffix in (".txt", ".jsonl"))


def _real_gpt2() -> tokenizers.Tokenizer:
    folder = os.environ.get("TEST_DATA_DIR")
    if not folder:
        pytest.skip("TEST_DATA_DIR is not set: no real vocabulary")
    files = [str(Path(folder) / "gpt2-tokenizer" / name) for name in ("vocab.json", "merges.txt")]
    backend = tokenizers.Tokenizer(models.BPE.from_file(*files))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|endoftext|>"])
    backend.encode_special_tokens = True
    return backend


@pytest.mark.parametrize("capacity", [0, 1, 2, 10, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_hard_strings(every_kind: dict[str, FastTokenizer], kind: str, capacity: int) -> None:
    """Alone, in a batch and a second time, with a table of any size."""
    backend = every_kind[kind].backend
    texts = [*HARD_STRINGS, PROSE, " ".join(HARD_STRINGS), "x ", "x  ", " x", "[SEP] <|endoftext|> x<|pad|>"]
    expected = _reference(backend, texts)
    encoder = _encoder(backend, capacity)
    assert encoder.encode_batch(texts) == expected
    assert encoder.encode_batch(texts) == expected
    assert [encoder.encode(text) for text in texts] == expected
    assert len(encoder) <= capacity


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, max_size=4))
def test_any_text(every_kind: dict[str, FastTokenizer], kind: str, texts: list[str]) -> None:
    """White space of every kind, signs, digits, accents, emoji."""
    backend = every_kind[kind].backend
    assert _encoder(backend, 20).encode_batch(texts) == _reference(backend, texts)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_every_character_beside_a_space(every_kind: dict[str, FastTokenizer], kind: str) -> None:
    """The characters of the basic plane (of Han and Hangul a few) and some others, on both sides of a cut."""
    backend = every_kind[kind].backend
    encoder = _encoder(backend)
    codes = [
        *(*range(0x3400), *range(0x3400, 0xA000, 31), *range(0xA000, 0xAC00), *range(0xAC00, 0xD800, 31)),
        *(*range(0xE000, 0xF900, 31), *range(0xF900, 0x10000), *range(0x10000, 0x110000, 997)),
    ]
    for start in range(0, len(codes), 4096):
        some = [chr(code) for code in codes[start : start + 4096]]
        texts = [f"a{char} b" for char in some] + [f"{char} {char}" for char in some]
        assert encoder.encode_batch(texts) == _reference(backend, texts)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_all_short_texts_of_each_class_of_characters(every_kind: dict[str, FastTokenizer], kind: str) -> None:
    """Four characters in every order: where ASCII is cut further, no neighbour changes the words."""
    backend = every_kind[kind].backend
    encoder = _encoder(backend)
    texts = ["".join(chars) for chars in product(" \n\r\t\x1caS1'#.\x00é", repeat=4)]
    assert encoder.encode_batch(texts) == _reference(backend, texts)


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("size", [1, 5, 30])
def test_long_texts_are_cut_into_blocks(
    every_kind: dict[str, FastTokenizer], kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a block ends, the ids are the same."""
    monkeypatch.setattr(chunks, "BLOCK_CHARACTERS", size)
    backend = every_kind[kind].backend
    texts = [PROSE, "a b  c   d ", "a ", " a", "ab cd ", "日本 日本 ", "a\x1c b\x1c c", *HARD_STRINGS]
    assert _encoder(backend).encode_batch(texts) == _reference(backend, texts)


def test_the_table_is_bounded_and_can_be_cleared(bpe: FastTokenizer) -> None:
    """It holds no long words and never more than its capacity."""
    encoder = _encoder(bpe.backend, 50)
    for start in range(0, 2000, 100):
        encoder.encode(" ".join(f"w{number}" for number in range(start, start + 100)))
        assert 0 < len(encoder) <= 50
    encoder.clear()
    assert len(encoder) == 0
    encoder.encode("日" * 500)
    assert len(encoder) == 0
    assert encoder.capacity == 50


def test_threads_may_share_a_table(bpe: FastTokenizer) -> None:
    """Also while it overflows."""
    encoder = _encoder(bpe.backend, 100)
    texts = [" ".join(f"word{number * step % 997}," for number in range(300)) for step in range(1, 40)]
    expected = _reference(bpe.backend, texts)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(encoder.encode, texts * 4)) == expected * 4


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "wordpiece", "bert", "real GPT-2"])
def test_real_text(every_kind: dict[str, FastTokenizer], kind: str) -> None:
    """The beginning of each file, in English and in Japanese."""
    backend = _real_gpt2() if kind == "real GPT-2" else every_kind[kind].backend
    texts = [path.read_text(encoding="utf-8")[:80_000] for path in _files()]
    assert _encoder(backend, 3000).encode_batch(texts) == _reference(backend, texts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "real GPT-2"])
def test_all_real_text(every_kind: dict[str, FastTokenizer], kind: str) -> None:
    """Every file, whole and by lines."""
    backend = _real_gpt2() if kind == "real GPT-2" else every_kind[kind].backend
    encoder = _encoder(backend)
    for path in _files():
        text = path.read_text(encoding="utf-8")
        for texts in ([text], text.splitlines(keepends=True)):
            assert encoder.encode_batch(texts) == _reference(backend, texts), path.name


def _bpe(
    pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> dict[str, Any]:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    return _spec(backend)


def _split(pattern: str, behavior: str = "isolated", *, invert: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior, invert)


def test_which_tokenizers_may_be_cut(every_kind: dict[str, FastTokenizer]) -> None:
    """Ours, GPT-2's, Llama 3's and those that also set digits apart."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert {kind: find_cut(_spec(each.backend)) for kind, each in every_kind.items()} == {
        kind: Cut(keeps_space=kind != "bert") for kind in KINDS
    }
    for pre_tokenizer in (
        byte_level,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
        pre_tokenizers.Sequence([_split(GPT4_SPLIT), inner]),
        pre_tokenizers.Sequence([_split(GPT2_SPLIT, "removed", invert=True), pre_tokenizers.Punctuation(), inner]),
    ):
        assert find_cut(_bpe(pre_tokenizer)) == Cut(keeps_space=True)
        assert find_cut(_bpe(pre_tokenizer, normalizers.NFC())) == Cut(keeps_space=True)


def test_which_tokenizers_are_left_to_the_library() -> None:
    """Whatever is not known to be safe: prefixes, lower case, other patterns, dropout, ordinary added tokens."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for pre_tokenizer in (
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.BertPreTokenizer(),
        _split(GPT4_SPLIT + "|x y"),
        _split(GPT4_SPLIT, "merged_with_next"),
        _split(GPT4_SPLIT, "removed"),
        _split(BERT_WORDS),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), plain]),
        pre_tokenizers.Sequence([_split(GPT4_SPLIT), pre_tokenizers.Metaspace()]),
    ):
        assert find_cut(_bpe(pre_tokenizer)) is None
    for normalizer in (normalizers.NFKC(), normalizers.Lowercase(), normalizers.Sequence([normalizers.NFC()])):
        assert find_cut(_bpe(plain, normalizer)) is None
    for change in (
        {"pre_tokenizer": None},
        {"truncation": {"max_length": 4}},
        {"padding": {"strategy": "BatchLongest"}},
        {"added_tokens": [{"content": "x y", "special": False}]},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"model": {"type": "WordLevel"}},
    ):
        assert find_cut(_bpe(plain) | change) is None


@settings(max_examples=150)
@given(texts=st.lists(TEXT, max_size=4))
def test_digits_apart_and_composed(texts: list[str]) -> None:
    """A tokenizer that composes characters (NFC) and sets digits apart before it splits as GPT-2 does."""
    backend = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(_alphabet())}, merges=[]))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert _encoder(backend).encode_batch(texts) == _reference(backend, texts)


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
