"""documents of one source -> training and held-out documents."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from llmt.errors import DataError
from llmt.text.documents import Document

FEW_DOCUMENTS = 20
"""With fewer documents than this the end of each one is held out, not some of them."""

HELD_CHARACTERS = 4_000_000
"""A document of more characters is decided upon before its end is read."""

MANY_SHARE = 0.05
FEW_SHARE = 0.1
"""Shares that are held out where none is named: of many documents, and of the end of few."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What has to be known of a source before its first document can be placed.

    Attributes:
        characters: The length of each document, of at most 20.
        together: What each pair belongs with; empty for other documents.
    """

    characters: tuple[int, ...]
    together: tuple[str, ...] = ()

    @property
    def is_few(self) -> bool:
        """The source has fewer than 20 documents."""
        return len(self.characters) < FEW_DOCUMENTS

    def answered_from(self, number: int) -> set[str]:
        """What the pairs answer from this document on; nothing where all pairs do."""
        held = {asked for asked in self.together[number:] if asked}
        return set() if all(asked in held for asked in self.together) else held


def survey(documents: Iterable[Document]) -> Survey:
    """Count the documents of a source, at most 20 of them, and their characters; holds one at a time."""
    lengths: list[int] = []
    together: list[str] = []
    length = 0
    for document in documents:
        length += len(document.text)
        if not document.more:
            lengths.append(length)
            together.append(document.belongs_with if document.pair else "")
            length = 0
        if len(lengths) == FEW_DOCUMENTS:
            break
    return Survey(tuple(lengths), tuple(together))


def hold_out(
    documents: Iterable[Document], share: float | None, found: Survey | None = None
) -> Iterator[tuple[Document, bool]]:
    """Each document, or part of one, with whether it is held out.

    Whole documents are chosen by the SHA-256 of their text (of a long one, of its first part; of a pair, of what both
    answer), so that equal texts fall on the same side and neither order nor neighbours matter. If chance holds out
    none, the one with the lowest hash is. With fewer than 20 documents the end of each is held out, cut at the nearest
    line within a tenth of the text, or else between two characters; prompts, conversations and pairs, which cannot be
    cut, are held out whole, the last ones, and with a pair those that answer the same, unless all do.

    Memory: with a survey, one document; without one, the first twenty.

    Args:
        documents: All documents of one source.
        share: From 0 (nothing is held out) to less than 1; None is 5 % of many documents, 10 % of few.
        found: What `survey` found; None finds out here.
    """
    if share == 0:
        return ((document, False) for document in documents)
    if found is None:
        rest = iter(documents)
        head: list[Document] = []
        for document in rest:
            head.append(document)
            if sum(not part.more for part in head) == FEW_DOCUMENTS:
                break
        found, documents = survey(head), chain(head, rest)
    if found.is_few:
        return _cut_each(documents, FEW_SHARE if share is None else share, found)
    return _choose(documents, MANY_SHARE if share is None else share)


def describe_split(share: float | None, *, few: bool) -> str:
    """What `hold_out` does with a source of few or of many documents, in a phrase."""
    if share == 0:
        return "nothing is held out, so nothing is validated"
    if few:
        shown = FEW_SHARE if share is None else share
        return f"the last {100 * shown:.3g} % of each text is held out (fewer than {FEW_DOCUMENTS} documents)"
    shown = MANY_SHARE if share is None else share
    return f"{100 * shown:.3g} % of the documents are held out, chosen by the hash of their text"


def _choose(documents: Iterable[Document], share: float) -> Iterator[tuple[Document, bool]]:
    lowest: list[list[Document]] = []  # equal documents that are held back until another one is held out
    bar = 1.0
    for parts, is_whole in _gather(documents):
        place = _place(parts[0].belongs_with)
        if place < share:
            yield from _each(lowest, held_out=False)
            yield from _each([parts], held_out=True)
            lowest, bar = [], 0.0
        elif is_whole and lowest and _texts(parts) == _texts(lowest[0]):
            lowest.append(list(parts))
        elif is_whole and place < bar:
            yield from _each(lowest, held_out=False)
            lowest, bar = [list(parts)], place
        else:
            yield from _each([parts], held_out=False)
    yield from _each(lowest, held_out=True)


def _each(documents: Iterable[Iterable[Document]], *, held_out: bool) -> Iterator[tuple[Document, bool]]:
    """All parts of some documents, on one side."""
    return ((part, held_out) for parts in documents for part in parts)


def _gather(documents: Iterable[Document]) -> Iterator[tuple["_Parts", bool]]:
    """The parts of each document, and whether all are held: those of one that is too long are read as they come."""
    rest = iter(documents)
    for document in rest:
        held, size = [document], len(document.text)
        while held[-1].more and size <= HELD_CHARACTERS and (part := next(rest, None)) is not None:
            held.append(part)
            size += len(part.text)
        is_whole = not held[-1].more
        yield _Parts(held, iter(()) if is_whole else rest), is_whole


class _Parts:
    """The parts of a document, the first of which are held."""

    def __init__(self, held: list[Document], rest: Iterator[Document]) -> None:
        self._held = held
        self._rest = rest

    def __getitem__(self, number: int) -> Document:
        return self._held[number]

    def __iter__(self) -> Iterator[Document]:
        yield from self._held
        for part in self._rest:
            yield part
            if not part.more:
                return


def _texts(parts: Iterable[Document]) -> list[str]:
    return [part.belongs_with for part in parts]


def _place(text: str) -> float:
    """A number in [0, 1) that the text alone decides.

    The remainder modulo 20 leads, so that a share of 0.05 is the usual "one hash in twenty".
    """
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return (number % 20 + number // 20 * 20 / 2**64) / 20


def _cut_each(documents: Iterable[Document], share: float, found: Survey) -> Iterator[tuple[Document, bool]]:
    """The end of each text; of prompts, conversations and pairs the last documents."""
    characters = found.characters
    kept = max(len(characters) - max(round(len(characters) * share), 1), 1)  # one alone is trained on
    held = found.answered_from(kept)
    number = done = 0
    cut = False  # the document whose parts are passing was cut already
    for document in documents:
        if number == len(characters):
            raise DataError(
                f"{document.source}: the source changed while it was read", "start again when it is complete"
            )
        length = characters[number]
        if document.prompt is not None or document.messages or document.pair:
            yield document, number >= kept or document.belongs_with in held
        elif not document.more and not done:
            yield from _cut(document, share)
        elif cut or done + len(document.text) < length * (1 - share):
            yield document, cut
        else:
            yield from _cut_at(
                document, min(round(length * (1 - share)) - done, len(document.text) - 1), begun=done > 0
            )
            cut = True
        done += len(document.text)
        if not document.more:
            number, done, cut = number + 1, 0, False


def _cut(document: Document, share: float) -> Iterator[tuple[Document, bool]]:
    end = len(document.text.rstrip())
    return _cut_at(document, min(max(round(end * (1 - share)), 1), end - 1))


def _cut_at(document: Document, target: int, *, begun: bool = False) -> Iterator[tuple[Document, bool]]:
    """Both sides of the line end that is nearest to `target`; `begun` says that parts of the text came before."""
    place = _line_near(document.text, target) if target > 0 else 0
    if place > 0 or begun:  # the side before ends here, though nothing of it may be left
        yield replace(document, text=document.text[:place], more=False), False
        yield replace(document, text=document.text[place:]), True
    else:
        yield document, False


def _line_near(text: str, target: int) -> int:
    """The beginning of a line within a tenth of the text, or else `target` itself."""
    end = len(text.rstrip())
    before, after = text.rfind("\n", 0, target) + 1, text.find("\n", target - 1, end) + 1
    lines = [line for line in (before, after) if 0 < line < end and abs(line - target) * 10 <= end]
    return min(lines, key=lambda line: abs(line - target), default=target)
