"""documents -> training and held-out documents."""

import hashlib
from collections.abc import Iterator
from itertools import chain, islice

from llmt.text.documents import Document

FEW_DOCUMENTS = 20
"""With fewer documents than this the end of each one is held out, not some of them."""


def hold_out(documents: Iterator[Document], share: float) -> Iterator[tuple[Document, bool]]:
    """Each document, or part of one, with whether it is held out.

    Whole documents are chosen by the SHA-256 of their text, so that equal texts fall on the same side and
    neither order nor neighbours matter. If chance holds out none, the one with the lowest hash is. With
    fewer than 20 documents the end of each is held out, cut at the nearest line within a tenth of the text,
    or else between two characters.

    Memory: at most 20 documents.

    Args:
        documents: The corpus.
        share: From 0 (nothing is held out) to less than 1.
    """
    if share == 0:
        return ((document, False) for document in documents)
    head = list(islice(documents, FEW_DOCUMENTS))
    if len(head) < FEW_DOCUMENTS:
        return chain.from_iterable(_cut(document, share) for document in head)
    return _choose(chain(head, documents), share)


def describe_split(share: float, documents: int) -> str:
    """What `hold_out` does with so many documents, in one sentence."""
    if share == 0:
        return "nothing is held out, so nothing is validated"
    if documents < FEW_DOCUMENTS:
        return f"the last {100 * share:.3g} % of each text is held out (fewer than {FEW_DOCUMENTS} documents)"
    return f"{100 * share:.3g} % of the documents are held out, chosen by the hash of their text"


def _choose(documents: Iterator[Document], share: float) -> Iterator[tuple[Document, bool]]:
    lowest: list[Document] = []  # equal documents that are held back until another one is held out
    bar = 1.0
    for document in documents:
        place = _place(document.text)
        if place < share:
            yield from ((kept, False) for kept in lowest)
            lowest, bar = [], 0.0
            yield document, True
        elif lowest and document.text == lowest[0].text:
            lowest.append(document)
        elif place >= bar:
            yield document, False
        else:
            yield from ((kept, False) for kept in lowest)
            lowest, bar = [document], place
    yield from ((document, True) for document in lowest)


def _place(text: str) -> float:
    """A number in [0, 1) that the text alone decides.

    The remainder modulo 20 leads, so that a share of 0.05 is the usual "one hash in twenty".
    """
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return (number % 20 + number // 20 * 20 / 2**64) / 20


def _cut(document: Document, share: float) -> Iterator[tuple[Document, bool]]:
    text = document.text
    end = len(text.rstrip())
    target = min(max(round(end * (1 - share)), 1), end - 1)
    before, after = text.rfind("\n", 0, target) + 1, text.find("\n", target - 1, end) + 1
    lines = [line for line in (before, after) if 0 < line < end and abs(line - target) * 10 <= end]
    place = min(lines, key=lambda line: abs(line - target), default=target)
    if place <= 0:
        yield document, False
        return
    yield Document(text[:place], document.source), False
    yield Document(text[place:], document.source), True
