"""texts -> the same texts, less a small part to measure on."""

from collections.abc import Iterable, Iterator

SHARE = 0.02
MOST_CHARACTERS = 1_000_000
LEAST_CHARACTERS = 1_000


class HeldOut:
    """Passes texts on, and keeps about one character in fifty back, whole lines where it can.

    Args:
        texts: Documents or blocks; read once, in order.

    Attributes:
        kept: What was kept back; empty after fewer than 50,000 characters.
        beginning: The first of what was passed on, for those cases.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self._read = 0
        self._held = 0
        self._begun = 0
        self.kept: list[str] = []
        self.beginning: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._read += len(text)
            due = int(min(self._read * SHARE, MOST_CHARACTERS)) - self._held
            passed = text
            if due >= LEAST_CHARACTERS:
                start = _tail(text, due)
                passed, kept = text[:start], text[start:]
                self.kept.append(kept)
                self._held += len(kept)
            if passed:
                self._begin(passed)
                yield passed

    def _begin(self, text: str) -> None:
        if self._begun < MOST_CHARACTERS:
            self.beginning.append(text[: MOST_CHARACTERS - self._begun])
            self._begun += len(self.beginning[-1])

    def sample(self) -> tuple[list[str], bool]:
        """What to measure on, and whether it was held out."""
        return (self.kept, True) if self.kept else (self.beginning, False)


def _tail(text: str, wanted: int) -> int:
    """Where a tail of about `wanted` characters begins: at a line, else at a space, else right there."""
    if len(text) <= wanted:
        return 0
    place = len(text) - wanted
    for sign in ("\n", " "):
        found = text.rfind(sign, max(0, place - wanted), place)
        if found >= 0:
            return found + (sign == "\n")
    return place
