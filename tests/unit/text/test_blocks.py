"""Long texts in blocks, cut where no word is cut."""

import itertools
import re
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from llmt.errors import DataError
from llmt.text.blocks import BLOCK_CHARACTERS, cut_blocks
from llmt.text.reading import Reading
from llmt.text.sources import PART_CHARACTERS, open_blocks, open_documents
from llmt.tokenizers.pretokenize import PATTERNS

ALPHABET = "ab1é四\u0301 \t\n\r\x0b\xa0\u3000\u2028\x1c\x85.!'s#。」\u200d😀🏽🇩🇪"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=60)
PIECES = st.lists(TEXTS, max_size=5)
FOREVER = 10**9


@given(PIECES, st.integers(1, 12))
@settings(max_examples=500)
def test_blocks_keep_the_text_and_every_word(pieces: list[str], size: int) -> None:
    """Joined they are the text, and their words are those of the text, by every pattern and by white space."""
    text = "".join(pieces)
    blocks = list(cut_blocks(pieces, size=size, uncut=FOREVER))
    assert "".join(blocks) == text
    assert all(blocks)
    for pattern in (*PATTERNS.values(), r"\S+"):
        assert [word for block in blocks for word in regex.findall(pattern, block)] == regex.findall(pattern, text)
    for name in ("gpt2", "gpt4"):
        split = Split(Regex(PATTERNS[name]), "isolated")
        ours = [word for block in blocks for word, _ in split.pre_tokenize_str(block)]
        assert ours == [word for word, _ in split.pre_tokenize_str(text)]


@given(TEXTS, st.lists(st.integers(0, 60)), st.integers(1, 12))
@settings(max_examples=300)
def test_how_the_text_is_divided_into_pieces_loses_nothing(text: str, cuts: list[int], size: int) -> None:
    """Pieces of one character included."""
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    assert "".join(cut_blocks(pieces, size=size, uncut=20)) == text
    assert "".join(cut_blocks(text, size=size, uncut=20)) == text


@given(TEXTS, st.integers(4, 12))
@settings(max_examples=500)
def test_blocks_are_short_where_there_is_a_place(text: str, size: int) -> None:
    """No block is longer than `size` unless it holds no place to cut, and none is much longer than `uncut`."""
    for block in cut_blocks([text], size=size, uncut=20):
        assert len(block) <= 20 + size
        if len(block) > size:
            assert re.search(r"\S[ \t\u3000]|\S\n\S", block[: len(block) - size]) is None


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("四四四\n\n四四四" * 20, "\n"),
        ("四四四\r\n四四四" * 20, "\r\n"),
        ("四四四。四四四" * 20, "。"),
        ("「四四四！」四四四" * 20, "！」"),
        ("四" * 200, "四"),
        ("e\u0301\u0302" * 70, "e\u0301\u0302"),
        ("👩🏽\u200d🚀" * 50, "👩🏽\u200d🚀"),
        ("\r\n" * 100, "\r\n"),
    ],
)
def test_a_text_without_a_good_place_is_cut_at_the_best(text: str, ends: str) -> None:
    """After a line, after a sentence with its closing marks, or between whole characters."""
    blocks = list(cut_blocks([text], size=30, uncut=60))
    assert "".join(blocks) == text
    assert len(blocks) > 4
    assert all(block.endswith(ends) and len(block) <= 30 for block in blocks[:-1])


def test_a_character_longer_than_a_block_is_cut() -> None:
    """Memory comes first: a letter may carry millions of accents."""
    text = "e" + "\u0301" * 500
    blocks = list(cut_blocks([text], size=30, uncut=60))
    assert "".join(blocks) == text
    assert max(map(len, blocks)) <= 60


def test_a_file_is_read_in_blocks_of_its_own(tmp_path: Path) -> None:
    """Documents never join; a byte order mark is no text; blank files are passed over."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone two")
    (tmp_path / "b.txt").write_bytes(b" \n")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "three"}\n{"text": " "}\n{"text": "four"}\n')
    assert list(open_blocks([str(tmp_path)])) == ["one two", "three", "four"]
    for number, count in ((1, 1), (2, 2), (3, 3), (9, 3)):
        assert len(list(open_blocks([str(tmp_path)], Reading(max_samples=number)))) == count
        assert len(list(open_documents([str(tmp_path)], Reading(max_samples=number)))) == count


@pytest.mark.parametrize("character", ["a", "é", "四", "😀"])
def test_characters_are_whole_across_reads(tmp_path: Path, character: str) -> None:
    """Whatever the place where a read of a megabyte ends."""
    for before in range(4):
        text = "x" * before + (character * 99 + " ") * 14_000
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        assert "".join(open_blocks([str(tmp_path / "a.txt")])) == text


def test_a_long_file_and_a_long_row_are_cut(tmp_path: Path) -> None:
    """A file into parts of up to 250,000 characters, a row into three; `max_samples` counts the documents."""
    text = "four words of text\n" * 500_000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text('{"text": "' + text.replace("\n", " ") + '"}\n{"text": "last"}')
    names = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    blocks = list(open_blocks(names))
    of_file, of_row = blocks[:-4], blocks[-4:]
    assert max(map(len, of_file)) <= PART_CHARACTERS
    assert max(map(len, of_row)) <= BLOCK_CHARACTERS
    assert "".join(of_file) == text
    assert "".join(blocks) == text + text.replace("\n", " ") + "last"
    assert list(open_blocks(names, Reading(max_samples=1))) == of_file


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_bad_bytes_at_the_seams_are_named_exactly(tmp_path: Path, errors: str) -> None:
    """A character that is cut by a read, by the end of the file, or by another one."""
    for before in ((1 << 20) - 2, (1 << 20) - 1, 1 << 20, 5):
        for bad in (b"\xe5\x9b", b"\xe5\x9bx", b"\xff", b"\xf0\x9f\x98"):
            content = b"a" * before + bad
            (tmp_path / "a.txt").write_bytes(content)
            blocks = open_blocks([str(tmp_path / "a.txt")], Reading(encoding_errors=errors))  # type: ignore[arg-type]
            if errors == "replace":
                assert "".join(blocks) == content.decode("utf-8", "replace")
                continue
            with pytest.raises(DataError, match=f"byte 0x{bad[0]:02x} at offset {before} is not UTF-8"):
                list(blocks)
