"""One trained tokenizer of each kind."""

import os
from pathlib import Path

import pytest
from tokenizer_texts import TEXTS

from llmt.tokenizers.bpe import ByteTokenizer, train_bpe, train_unigram
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.wordpiece import train_wordpiece


@pytest.fixture(scope="session")
def bpe() -> FastTokenizer:
    """Byte-level BPE with some merges."""
    return train_bpe(TEXTS, vocab_size=400)


@pytest.fixture(scope="session")
def wordpiece() -> FastTokenizer:
    """Lossless WordPiece with some merges."""
    return train_wordpiece(TEXTS, vocab_size=650)


@pytest.fixture(scope="session")
def bert() -> FastTokenizer:
    """WordPiece over words alone."""
    return train_wordpiece(TEXTS, vocab_size=300, style="bert")


@pytest.fixture(scope="session")
def every_kind(bpe: FastTokenizer, wordpiece: FastTokenizer, bert: FastTokenizer) -> dict[str, FastTokenizer]:
    """One of each, by name."""
    return {
        "bpe": bpe,
        "gpt2": train_bpe(TEXTS, vocab_size=300, split="gpt2"),
        "byte": ByteTokenizer(),
        "unigram": train_unigram(TEXTS, vocab_size=300),
        "wordpiece": wordpiece,
        "prefix": train_wordpiece(TEXTS, vocab_size=600, continuation_prefix="@+"),
        "bert": bert,
    }


@pytest.fixture(scope="session")
def real_text() -> str:
    """A real English document."""
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None:
        pytest.skip("TEST_DATA_DIR is not set: no real text to train on")
    return (Path(folder) / "tinyshakespeare.txt").read_text(encoding="utf-8")
