"""files of records and tables -> rows, one at a time."""

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from llmt.errors import DataError
from llmt.text.compressed import open_unpacked, suffixes
from llmt.text.readers import MAX_LINE_BYTES, checked_object, read_json_lines, read_pieces
from llmt.text.reading import Reading
from llmt.text.rows import Choose, Row
from llmt.text.tables import read_table

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LIMIT_HINT = f"nothing longer than {MAX_LINE_BYTES // 1_000_000} million characters is read as one row"
_JSON_HINT = "write a list of objects, or one object on each line"
_PEEK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
# So near the end of what was read an error may be that of a value which goes on, such as half an escape.
_CUT_CHARACTERS = 16


def read_rows(path: Path, reading: Reading, choose: Choose | None = None, start: int = 0) -> Iterator[Row]:
    """The rows of a file by its suffix, packed or not; about a row, or a few hundred of a table, are held.

    Args:
        path: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow or .feather.
        reading: How bad bytes are treated; told of rows that hold nothing.
        choose: Which columns of a table are read; None reads all.
        start: The first row, from 0; lines before it are not looked into, groups of rows before it not read.

    Raises:
        DataError: The file is not what its name says, or damaged where the rows after it cannot be found; what
            `choose` raises.
        StorageError: The file cannot be read.
        MissingPackageError: pyarrow, which reads tables, cannot be imported.
    """
    suffix = suffixes(path)[0]
    if suffix in _DELIMITERS:
        return islice(_read_separated(path, reading, choose, _DELIMITERS[suffix]), start, None)
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and _has_lines(path)):
        return read_json_lines(path, reading, start)
    return islice(_read_json(path, reading), start, None) if suffix == ".json" else read_table(path, choose, start)


def _read_separated(path: Path, reading: Reading, choose: Choose | None, delimiter: str) -> Iterator[Row]:
    """Rows of .csv and .tsv: the first line names the columns; fields may be quoted and hold line ends."""
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = csv.reader(_lines(path, reading), delimiter=delimiter, strict=True)
    try:
        names = next(lines, [])
    except csv.Error as error:
        raise _bad_row(f"{path}:1", error) from error
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}:1: two columns are named {twice!r}", "rename one of them")
    if choose is not None and names:
        choose(names)
    while True:
        place = f"{path}:{lines.line_num + 1}"
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(place, error=_bad_row(place, error), kind="column")
            continue
        if not values:
            if reading.on_empty is not None:
                reading.on_empty(place)
        elif len(values) != len(names):
            fault = DataError(f"{place}: {len(values)} fields where {len(names)} belong", "correct the row")
            yield Row(place, error=fault, kind="column")
        else:
            yield Row(place, dict(zip(names, values, strict=True)), kind="column")


def _bad_row(place: str, error: csv.Error) -> DataError:
    said = str(error)
    if "unexpected end" in said:
        return DataError(f"{place}: a quote begins here and never ends", "close it, or double it if it is text")
    if "field limit" in said:
        return DataError(f"{place}: a field without end, as of a quote that is not closed", _LIMIT_HINT)
    return DataError(f"{place}: not a row: {said}", "correct the row")


def _lines(path: Path, reading: Reading) -> Iterator[str]:
    """The lines of a file with their ends, which are LF, CR LF or CR."""
    held: list[str] = []
    size = 0
    for piece in read_pieces(path, reading.encoding_errors):
        held.append(piece)
        size += len(piece)
        if size > MAX_LINE_BYTES:
            raise DataError(f"{path}: a line of more than {MAX_LINE_BYTES // 1_000_000} MB", _LIMIT_HINT)
        if "\n" in piece or "\r" in piece:
            # The last is held: it may go on, or end in a CR whose LF is yet to come.
            *whole, last = io.StringIO("".join(held), newline="")
            yield from whole
            held, size = [last], len(last)
    yield from io.StringIO("".join(held), newline="")


def _has_lines(path: Path) -> bool:
    """Whether a .json holds one object on each line, as the first line shows."""
    with open_unpacked(path) as stream:
        line = stream.readline(_PEEK_BYTES)
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_json(path: Path, reading: Reading) -> Iterator[Row]:
    """The objects of a list, or objects that follow each other."""
    values = _Values(path, reading)
    is_list = values.take("[")
    number = 0
    while not values.at_end():
        if is_list and values.take("]"):
            if not values.at_end():
                raise values.error("more text after the list")
            return
        if is_list and number and not values.take(","):
            raise values.error("not JSON: a comma belongs between two values")
        number += 1
        place = f"{path}: row {number}"
        value = values.read(place)
        try:
            yield Row(place, checked_object(value, place, reading.encoding_errors, _JSON_HINT))
        except DataError as error:
            yield Row(place, error=error)
    if is_list:
        raise values.error("the list does not end, so the file is cut off")


class _Values:
    """The JSON values of a text, of which about one is held."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._pieces = read_pieces(path, reading.encoding_errors)
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._place = 0
        self._line = 1

    def at_end(self) -> bool:
        """Nothing but white space is left; afterwards no white space stands next."""
        while True:
            space = _SPACE.match(self._text, self._place)
            self._pass(space.end() if space else self._place)
            if self._place < len(self._text):
                return False
            if not self._more(1):
                return True

    def take(self, sign: str) -> bool:
        """Pass over the next sign if it is this one."""
        if self.at_end() or self._text[self._place] != sign:
            return False
        self._pass(self._place + 1)
        return True

    def read(self, place: str) -> object:
        """The next value.

        Raises:
            DataError: What stands there is none, which also hides where the next one begins.
        """
        if self.at_end():
            raise self.error("a value is missing")
        wanted = 1
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # The end of a string that is missing is told by its beginning.
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _CUT_CHARACTERS
                size = len(self._text) - self._place
                if is_cut and size > MAX_LINE_BYTES:
                    raise DataError(f"{place}: more than {MAX_LINE_BYTES // 1_000_000} MB", _LIMIT_HINT) from None
                if not is_cut or not self._more(wanted):
                    self._pass(error.pos)
                    raise self.error(f"not JSON: {error.msg}") from None
                wanted *= 2
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not JSON that can be read: {error}", _JSON_HINT) from None
            else:
                self._pass(end)
                return value

    def error(self, message: str) -> DataError:
        """What is wrong at the place that was reached."""
        return DataError(f"{self._path}:{self._line}: {message}", _JSON_HINT)

    def _pass(self, place: int) -> None:
        self._line += self._text.count("\n", self._place, place)
        self._place = place

    def _more(self, pieces: int) -> bool:
        """Read so many pieces more, if there are any."""
        parts = list(islice(self._pieces, pieces))
        if parts:
            self._text, self._place = "".join((self._text[self._place :], *parts)), 0
        return bool(parts)
