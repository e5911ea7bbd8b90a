"""Text in many scripts, and one trained tokenizer of each kind."""

import os
from pathlib import Path

import pytest

from llmt.tokenizers.bpe import train_bpe, train_byte, train_unigram
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.wordpiece import train_wordpiece

PROSE = """The miller's daughter said that she'd count 1,234 sacks before the day was over, and 56 more after.
"Who will carry them?" asked the boy; nobody answered. ## Heading #1 ###
\tdef carry(sack): return sack + 1   # a comment
Über die Brücke ging ein müder Müller. 今日は天気がいいです。 你好，世界！ Привет, мир. नमस्ते दुनिया
"""
TEXTS = [PROSE] * 3 + [PROSE.replace("carry", "lift"), PROSE.upper()]

HARD_STRINGS = [
    "",
    " ",
    "hello world",
    "  two  spaces  ",
    "tabs\tand\nnew\r\nlines\n\n\n",
    "#",
    "##",
    "###",
    "##a",
    "a##b #define # x",
    "I'll don't WE'VE 12345678",
    "caf\u00e9 cafe\u0301",
    "日本語のテキスト",
    "नमस्ते مرحبا ไทย",
    "👩\u200d👩\u200d👧 🏽🇩🇪 ❤\ufe0f",
    "nul\x00 bell\x07 \x1c\x85 \u00a0\u3000\u2028",
    "\ufeffbom \ue000 \U0010ffff",
    "a" * 300,
    "日" * 120,
    "-" * 90 + " " * 90 + "x",
]


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
        "byte": train_byte(),
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
