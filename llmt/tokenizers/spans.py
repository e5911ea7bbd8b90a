"""tokenizer, text -> where each token stands in the text, and what can be seen of it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from llmt.errors import UsageError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bytelevel import to_bytes

Span = tuple[int, int]
Kind = Literal["text", "bytes", "unknown"]

EXAMPLES = 10
_SEARCH_CHARACTERS = 64
_ESCAPED = re.compile("[\udc80-\udcff]")
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
# Control, format, private and unassigned characters, and the two that end lines unseen.
_HIDDEN = regex.compile(r"[\p{C}\p{Zl}\p{Zp}]")
_STRANGE_SPACE = regex.compile(r"[\p{Zs}--[ ]]", regex.V1)
_MARK = regex.compile(r"\p{M}")
_SPELLED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class Segment:
    """One token of a text.

    Attributes:
        piece: As it stands in the vocabulary.
        token_id: Its id.
        start: First character of the text that it covers.
        end: One after the last. A character of several tokens is covered by each.
        text: What it stands for; a byte that is only part of a character is written `<E2>`.
        kind: `bytes` holds parts of characters, `unknown` stands for what the vocabulary cannot spell.
    """

    piece: str
    token_id: int
    start: int
    end: int
    text: str
    kind: Kind


def locate(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[Span]:
    """For each token the characters of `text` that it covers, as (start, end).

    Exact where the bytes of the tokens are those of the text. Otherwise the tokenizer's own offsets, and for
    one that keeps none a search for each piece, in order; a piece that is not found covers nothing.

    Args:
        tokenizer: Made `ids` of `text`.
        text: Well-formed text.
        ids: `tokenizer.encode(text)`.
    """
    known = {token_id: tokenizer.token_bytes(token_id) for token_id in set(ids)}
    parts = [known[token_id] for token_id in ids]
    if b"".join(parts) == text.encode():
        return _spans_of_bytes(parts)
    try:
        spans = tokenizer.offsets(text)
    except UsageError:
        return _search(text, [own_text(part) for part in parts])
    return spans if len(spans) == len(ids) else _search(text, [own_text(part) for part in parts])


def make_segments(tokenizer: Tokenizer, text: str, ids: Sequence[int], spans: Sequence[Span]) -> list[Segment]:
    """Tokens with what can be seen of them.

    Args:
        tokenizer: Made `ids` of `text`.
        text: Well-formed text.
        ids: The first tokens of the text, or all.
        spans: Of all tokens, from `locate`.
    """
    segments = []
    for number, (token_id, piece) in enumerate(zip(ids, tokenizer.tokens(ids), strict=True)):
        start, end = spans[number]
        before = spans[number - 1][1] if number else 0
        after = spans[number + 1][0] if number + 1 < len(spans) else len(text)
        is_partial = start < before or after < end or start == end
        shown = own_text(tokenizer.token_bytes(token_id)) if is_partial else text[start:end]
        kind: Kind = "bytes" if is_partial and start < end else "text"
        if token_id == tokenizer.unk_token_id:
            shown, kind = text[start:end] or piece, "unknown"
        segments.append(Segment(piece, token_id, start, end, shown, kind))
    return segments


def segment(tokenizer: Tokenizer, text: str) -> list[Segment]:
    """The tokens of a well-formed text with what can be seen of them."""
    ids = tokenizer.encode(text)
    return make_segments(tokenizer, text, ids, locate(tokenizer, text, ids))


def own_text(data: bytes) -> str:
    """The text of a token's bytes; a byte that belongs to no whole character is written `<E2>`."""
    fallback = _BYTE_PIECE.fullmatch(data)  # how SentencePiece writes a single byte
    if fallback:
        data = bytes([int(fallback[1], 16)])
    text = data.decode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda found: f"<{ord(found[0]) - 0xDC00:02X}>", text)


def label(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as people read it: the text of its bytes, after the prefix that only marks its place (`##ing`)."""
    piece = tokenizer.tokens([token_id])[0]
    data = tokenizer.token_bytes(token_id)
    for place in range(len(piece)):
        if data in (to_bytes(piece[place:]), piece[place:].encode()):
            return piece[:place] + own_text(data)
    return own_text(data)


def longest_labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The longest of some tokens, in whole characters and then in bytes, longest first."""
    data = {token_id: tokenizer.token_bytes(token_id) for token_id in set(ids)}
    sizes = {token_id: (len(part.decode(errors="ignore")), len(part)) for token_id, part in data.items()}
    order = sorted(data, key=lambda token_id: (-sizes[token_id][0], -sizes[token_id][1], token_id))
    return [label(tokenizer, token_id) for token_id in order[:EXAMPLES]]


def visible(text: str, newline: str = "\\n") -> str:
    """`text` as it can be printed: every control and format character is spelled out.

    Args:
        text: Any text.
        newline: What stands for a line feed.
    """
    shown: str = _HIDDEN.sub(lambda found: newline if found[0] == "\n" else _spell(found[0]), _held(text))
    return shown


def quoted(text: str) -> str:
    """`visible`, for the cell of a table: spaces show as well."""
    spelled: str = _STRANGE_SPACE.sub(lambda found: _spell(found[0]), visible(text))
    return spelled.replace(" ", "\u2423")


def _held(text: str) -> str:
    """A mark at the beginning stands on a dotted circle, and not on what was printed before."""
    return "\u25cc" + text if _MARK.match(text) else text


def _spell(char: str) -> str:
    if char in _SPELLED:
        return _SPELLED[char]
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _spans_of_bytes(parts: Sequence[bytes]) -> list[Span]:
    """Spans of tokens whose bytes make up the text: each character begins at a byte that continues none."""
    spans = []
    begun = 0
    for part in parts:
        start = begun - 1 if part and 0x80 <= part[0] < 0xC0 else begun
        begun += sum(not 0x80 <= byte < 0xC0 for byte in part)
        spans.append((start, begun))
    return spans


def _search(text: str, pieces: Sequence[str]) -> list[Span]:
    spans = []
    position = 0
    for piece in pieces:
        bare = piece.strip(" \u2581\u0120").removeprefix("##")
        found = text.find(bare, position, position + len(bare) + _SEARCH_CHARACTERS) if bare else -1
        if found >= 0:
            spans.append((found, found + len(bare)))
            position = found + len(bare)
        else:
            spans.append((position, position))
    return spans
