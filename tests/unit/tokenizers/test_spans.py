"""Where tokens stand in a text, and what is shown of them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, PROSE

from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import ByteTokenizer
from llmt.tokenizers.spans import label, locate, longest_labels, make_segments, own_text, quoted, segment, visible

BYTES = ByteTokenizer()


class Words(Tokenizer):
    """Lower-case words without offsets, as somebody's own class may be."""

    def __init__(self) -> None:
        self._pieces = ["<unk>", "##s", "the", "\u2581cat", "dog"]

    vocab_size = 5
    special_tokens = {"unk_token": "<unk>"}  # noqa: RUF012

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """`cats` is `cat` and `s`."""
        bare = {"the": 2, "cat": 3, "dog": 4, "s": 1}
        return [bare.get(word, 0) for word in re.findall(r"cat|dog|s$|s(?= )|\w+", text)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Pieces with spaces between them."""
        return " ".join(self._pieces[token_id] for token_id in ids)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces."""
        return [self._pieces[token_id] for token_id in ids]

    def token_to_id(self, token: str) -> int | None:
        """The place in the list."""
        return self._pieces.index(token) if token in self._pieces else None

    def train(
        self, texts: Iterable[str], vocab_size: int = 30_000, min_frequency: int = 2, verbose: bool = False
    ) -> None:
        """Nothing."""

    def save_pretrained(self, directory: str | Path) -> None:
        """Nothing."""

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The same."""
        return cls()


@pytest.mark.parametrize("text", [PROSE, *HARD_STRINGS], ids=range(len(HARD_STRINGS) + 1))
def test_spans_cover_the_text(every_kind: dict[str, Tokenizer], text: str) -> None:
    """In order, without a gap where nothing is lost; each lossless token holds exactly its bytes' characters."""
    for name, tokenizer in every_kind.items():
        ids = tokenizer.encode(text)
        spans = locate(tokenizer, text, ids)
        assert len(spans) == len(ids)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans)), name
        if not tokenizer.is_lossless:
            continue
        place = 0
        for token_id, (start, end) in zip(ids, spans, strict=True):
            data = tokenizer.token_bytes(token_id)
            before, after = text.encode()[:place], text.encode()[: place + len(data)]
            assert (start, end) == (len(before.decode(errors="ignore")), len(_ceiling(after))), name
            place += len(data)
        assert place == len(text.encode())


def _ceiling(data: bytes) -> str:
    """The characters that begin in some bytes."""
    return "".join("x" for byte in data if byte & 0xC0 != 0x80)


@pytest.mark.parametrize("text", [PROSE, *HARD_STRINGS], ids=range(len(HARD_STRINGS) + 1))
def test_shown_texts_make_up_the_text(every_kind: dict[str, Tokenizer], text: str) -> None:
    """What is shown of lossless tokens, with loose bytes put back, is the text; lossy ones show their part of it."""
    for name, tokenizer in every_kind.items():
        segments = segment(tokenizer, text)
        assert [part.token_id for part in segments] == tokenizer.encode(text)
        assert [part.piece for part in segments] == tokenizer.tokens(tokenizer.encode(text))
        if tokenizer.is_lossless:
            data = b"".join(
                part.text.encode() if part.kind == "text" else tokenizer.token_bytes(part.token_id) for part in segments
            )
            assert data == text.encode(), name
            assert all(("<" in part.text) for part in segments if part.kind == "bytes")
        else:
            assert all(part.text == text[part.start : part.end] for part in segments if part.start < part.end), name


def test_parts_of_characters_are_bytes() -> None:
    """A byte that is no whole character is written in brackets, whatever stands around it."""
    assert [part.text for part in segment(BYTES, "a日")] == ["a", "<E6>", "<97>", "<A5>"]
    assert [part.kind for part in segment(BYTES, "a日")] == ["text", "bytes", "bytes", "bytes"]
    assert own_text(b" \xe6") == " <E6>"
    assert own_text("\u3042".encode() + b"\xe3\x81") == "\u3042<E3><81>"
    assert own_text(b"<0xE6>") == "<E6>"
    assert own_text(b"<0x41>") == "A"
    assert own_text("é日".encode()) == "é日"


def test_unknown_tokens_show_what_they_swallowed(bert: Tokenizer) -> None:
    """The text that became the unknown token is still seen."""
    unknown = [part for part in segment(bert, "the 😀 day") if part.kind == "unknown"]
    assert [(part.text, part.token_id) for part in unknown] == [("😀", bert.unk_token_id)]


def test_a_tokenizer_without_offsets_is_searched() -> None:
    """Pieces are found in the text in order; what is not found covers nothing."""
    text = "the cats saw the dog"
    words = Words()
    ids = words.encode(text)
    spans = locate(words, text, ids)
    assert [text[start:end] for start, end in spans] == ["the", "cat", "s", "", "the", "dog"]
    assert [part.text for part in make_segments(words, text, ids, spans)][3] == "<unk>"


def test_labels_keep_the_prefix_that_marks_a_place(wordpiece: Tokenizer, bpe: Tokenizer, bert: Tokenizer) -> None:
    """`##` stays before the text of a piece; byte characters become the text they stand for."""
    for tokenizer in (wordpiece, bert):
        pieces = tokenizer.tokens(range(tokenizer.vocab_size))
        for token_id, piece in enumerate(pieces[5:], 5):
            assert label(tokenizer, token_id).startswith("##") == (piece.startswith("##") and piece != "##")
    assert label(bpe, bpe.encode(" ")[0]) == " "
    assert label(wordpiece, wordpiece.token_to_id("##\u0120") or 0) == "## "


def test_longest_is_longest_in_characters(every_kind: dict[str, Tokenizer]) -> None:
    """No token has more whole characters than the first that is listed."""
    for tokenizer in every_kind.values():
        every = range(tokenizer.vocab_size)
        lengths = [len(tokenizer.token_bytes(token_id).decode(errors="ignore")) for token_id in every]
        first = longest_labels(tokenizer, every)[0]
        assert first in {label(tokenizer, token_id) for token_id in every if lengths[token_id] == max(lengths)}


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20))
def test_nothing_invisible_is_printed(text: str) -> None:
    """Control and format characters are spelled, a beginning mark gets a circle, and all else stays."""
    for shown in (visible(text), visible(text, newline="\u21b5\n").replace("\n", ""), quoted(text)):
        assert all(unicodedata.category(char)[0] != "C" or ord(char) > 0xFFFF or _new(char) for char in shown)
        assert not shown or unicodedata.category(shown[0])[0] != "M"
    plain = "a é日😀 .|"
    assert visible(plain) == plain


def _new(char: str) -> bool:
    """Whether the interpreter's Unicode may not yet know a character."""
    return unicodedata.category(char) == "Cn"


def test_spelling() -> None:
    """Escapes are spelled as in Python, and a space in a table is a sign."""
    assert (
        visible("\x1b[2J\x00\x9b\u202e\u200d\n\t\r\U000e0001") == "\\x1b[2J\\x00\\x9b\\u202e\\u200d\\n\\t\\r\\U000e0001"
    )
    assert visible("a\nb", newline="\u21b5\n") == "a\u21b5\nb"
    assert quoted(" the\u00a0x\u3000") == "\u2423the\\xa0x\\u3000"
    assert visible("\u0301a") == "\u25cc\u0301a"
