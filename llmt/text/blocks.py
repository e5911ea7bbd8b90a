"""pieces of text -> the documents between separators, and blocks of about four million characters."""

import re
from collections.abc import Iterable, Iterator

import regex

BLOCK_CHARACTERS = 4_000_000
UNCUT_CHARACTERS = 16_000_000
_PIECE_CHARACTERS = 1_000_000

# Where a text may be cut without changing any word of the split patterns of GPT-2, GPT-4 or BERT, or any
# word between white space. Before a space, tab or ideographic space that follows a visible character: no
# pattern matches or looks ahead across it. After a single line feed between visible characters: it always
# ends a match. After two it does not, because `\s+(?!\S)` leaves the last one to the next match.
# The pattern begins with the characters themselves, which is many times faster to search for.
_EXACT = re.compile(r"[ \t\u3000](?<=\S.)|\n(?<=\S\n)(?=\S)")
# Where a text is cut that has no such place for a long time: after a line, else after a sentence. What goes
# onto the character before it is never cut off.
_SENTENCE_END = "[!?\u2026\u3002\uff01\uff0e\uff1f\u061f\u06d4\u0964]"
_CLOSING = "[\"')\\]\u201d\u2019\u300d\u300f\uff09]"
_NEXT_BEST = (
    regex.compile(r"\n(?=[^\s\p{M}])"),
    regex.compile(rf"{_SENTENCE_END}{_CLOSING}*+(?=[^\s\p{{M}}])"),
)
_CHARACTER = regex.compile(r"\X")
_CHARACTER_WINDOW = 1024


def cut_blocks(pieces: Iterable[str], *, size: int = BLOCK_CHARACTERS, uncut: int = UNCUT_CHARACTERS) -> Iterator[str]:
    """The text in blocks that joined give it back; about `size` or `uncut` characters are held.

    A block ends before a space that follows a visible character, or after a single line feed between two of
    them. A text that has no such place for `uncut` characters is cut after another line feed, else after the
    end of a sentence, else between two characters as a reader sees them.

    Args:
        pieces: The text of one document, in order. How it is divided into pieces is of no importance.
        size: A block is not longer, unless `size` characters hold no place to cut.
        uncut: A block is never much longer.
    """
    ready: list[str] = []  # up to the last good place
    rest: list[str] = []  # after it
    n_ready = n_rest = 0
    last = ""
    for piece in _small(pieces, min(max(size // 2, 1), _PIECE_CHARACTERS)):
        place = _last_exact(last + piece) - len(last)
        last = piece[-2:] if len(piece) > 1 else (last + piece)[-2:]
        if place >= 0:
            if ready and n_ready + n_rest + place > size:
                yield "".join(ready)
                ready, n_ready = [], 0
            ready += [*rest, piece[:place]]
            n_ready += n_rest + place
            rest, n_rest = [], 0
            piece = piece[place:]
        rest.append(piece)
        n_rest += len(piece)
        if n_rest >= uncut:
            if ready:
                yield "".join(ready)
            *blocks, left = _cut_anyhow("".join(rest), size)
            yield from blocks
            ready, n_ready, rest, n_rest = [], 0, [left], len(left)
    if ready and n_ready + n_rest > size:
        yield "".join(ready)
        ready = []
    if ready or n_rest:
        yield "".join((*ready, *rest))


def split_pieces(pieces: Iterable[str], separator: str) -> Iterator[tuple[int, Iterator[str]]]:
    """What stands between the separators, as `str.split` divides it, each with the number of its first line.

    A part comes in pieces, and is read before the next part is asked for; what was not taken of it is passed over.
    About one piece is held. Lines end at LF.

    Args:
        pieces: The text, in order. How it is divided into pieces is of no importance.
        separator: Not empty.
    """
    parts = _Parts(iter(pieces), separator)
    while not parts.finished:
        line, part = parts.line, parts.read()
        yield line, part
        for _ in part:
            pass


class _Parts:
    def __init__(self, pieces: Iterator[str], separator: str) -> None:
        self._pieces = pieces
        self._separator = separator
        self._text = ""
        self._place = 0  # what is before it was given away
        self.line = 1
        self.finished = False

    def read(self) -> Iterator[str]:
        """Up to the next separator, or to the end."""
        while True:
            end = self._text.find(self._separator, self._place)
            if end >= 0:
                yield from self._take(end)
                self._take_separator()
                return
            # The last characters may begin a separator that the next piece ends.
            yield from self._take(max(len(self._text) - len(self._separator) + 1, self._place))
            piece = next(self._pieces, None)
            if piece is None:
                self.finished = True
                yield from self._take(len(self._text))
                return
            self._text, self._place = self._text[self._place :] + piece, 0

    def _take(self, end: int) -> Iterator[str]:
        taken = self._text[self._place : end]
        self.line += taken.count("\n")
        self._place = end
        if taken:
            yield taken

    def _take_separator(self) -> None:
        self.line += self._separator.count("\n")
        self._place += len(self._separator)


def _small(pieces: Iterable[str], most: int) -> Iterator[str]:
    for piece in pieces:
        for start in range(0, len(piece), most):
            yield piece[start : start + most]


def _last_exact(text: str) -> int:
    """The last place in `text` where cutting changes no word; -1 where there is none."""
    window = 4096
    last: re.Match[str] | None = None
    while True:
        start = max(len(text) - window, 0)
        for match in _EXACT.finditer(text, start):
            last = match
        if last is not None or start == 0:
            break
        window *= 16
    if last is None:
        return -1
    return last.end() if last[0] == "\n" else last.start()


def _cut_anyhow(text: str, size: int) -> Iterator[str]:
    """Parts of at most `size` characters, each cut at the best place of its second half."""
    start = 0
    while len(text) - start > size:
        end = _best_place(text, start + size // 2, start + size)
        yield text[start:end]
        start = end
    yield text[start:]


def _best_place(text: str, low: int, high: int) -> int:
    for kind in _NEXT_BEST:
        place = max((match.end() for match in kind.finditer(text, low, high)), default=0)
        if place:
            return place
    # Whole characters: not inside a line end of two, an accent upon a letter, an emoji of many parts.
    start = max(low, high - _CHARACTER_WINDOW)
    starts = [match.start() for match in _CHARACTER.finditer(text, start, high + 1) if match.start() > start]
    return starts[-1] if starts else high
