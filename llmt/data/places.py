"""where each document came from, in a file that stays small: what a line shares with the one before is left out."""

from itertools import islice
from pathlib import Path
from typing import BinaryIO


class PlaceWriter:
    """Writes one place after the other into an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._base = ""

    def add(self, place: str) -> None:
        """The next document came from here.

        Raises:
            OSError: The disk refused.
        """
        if self._base and place.startswith(self._base):
            line = "+" + _escape(place[len(self._base) :])
        else:
            line = "=" + _escape(place)
            self._base = _base(place)
        self._file.write(f"{line}\n".encode("utf-8", "surrogateescape"))


def read_place(path: Path, number: int) -> str:
    """The place of a document by its number, from 0; reads the file up to there.

    Raises:
        IndexError: There are fewer.
        OSError: The file cannot be read.
    """
    base = ""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in islice(lines, number + 1):
            number -= 1
            text = _unescape(line[1:-1])
            place = base + text if line[0] == "+" else text
            base = base if line[0] == "+" else _base(text)
    if number >= 0:
        raise IndexError(f"{path}: fewer documents")
    return place


def _base(place: str) -> str:
    """The part of a place that the next one probably has too: all up to the number."""
    base = place.rstrip("0123456789")
    return base if base != place else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _unescape(text: str) -> str:
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\r", "\r").replace("\0", "\\")
