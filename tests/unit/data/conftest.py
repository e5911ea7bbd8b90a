"""A real tokenizer and small corpora."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import train_bpe

SENTENCES = [
    f"Sentence {number}: the {['quick', 'slow', 'old'][number % 3]} fox número {number * number} jumps; 狐.\n"
    for number in range(400)
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 320 ids, trained on the sentences."""
    return train_bpe(SENTENCES, vocab_size=320)


@pytest.fixture
def text_folder(tmp_path: Path) -> Callable[[int], Path]:
    """A function that makes a folder of so many different .txt files."""

    def make(files: int) -> Path:
        folder = tmp_path / "texts"
        folder.mkdir()
        for number in range(files):
            lines = SENTENCES[number * 7 % 300 : number * 7 % 300 + 5 + number % 11]
            (folder / f"{number:03d}.txt").write_text(f"File {number}.\n" + "".join(lines), encoding="utf-8")
        return folder

    return make
