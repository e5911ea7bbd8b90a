"""bytes of one file -> documents, with the place of every problem."""

import codecs
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from llmt.config.data import EncodingErrors
from llmt.errors import DataError
from llmt.text.columns import no_column, require_text
from llmt.text.compressed import open_unpacked, packing_of
from llmt.text.documents import Document
from llmt.text.reading import PLAIN, Reading

PIECE_BYTES = 1 << 20
MAX_LINE_BYTES = 256_000_000
_MARK = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_FORMATS_HINT = "give UTF-8 text: .txt, .md or .jsonl"
_JSON_HINT = "write one object on each line"


def read_pieces(path: Path, encoding_errors: EncodingErrors = "strict") -> Iterator[str]:
    """The text of a whole file in pieces of up to a million characters, its line ends as they are.

    Raises:
        DataError: Bytes that are not UTF-8, a NUL character (then it is not text), or a damaged packing.
        StorageError: The file cannot be read.
    """
    with open_unpacked(path) as stream:
        yield from decode(stream, str(path), encoding_errors)


def decode(stream: BinaryIO, name: str, encoding_errors: EncodingErrors) -> Iterator[str]:
    """The text of a stream of UTF-8, in pieces of up to a million characters, without a byte order mark.

    Args:
        stream: Bytes.
        name: What errors call it. Offsets count the bytes of the stream, unpacked where it was packed.
        encoding_errors: `strict` stops at bytes that are not UTF-8, `replace` puts U+FFFD there.

    Raises:
        DataError: Bytes that are not UTF-8, or a NUL character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(encoding_errors)
    offset, is_first = 0, True
    while True:
        content = stream.read(PIECE_BYTES)
        held = decoder.getstate()[0]  # the first bytes of a character that the last piece cut
        try:
            piece = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            raise _not_utf8(held + content, error.start, name, offset - len(held)) from None
        if b"\0" in content:
            place = offset + content.index(0)
            raise DataError(f"{name}: byte 0x00 at offset {place}, so this is not text", _FORMATS_HINT)
        offset += len(content)
        if piece:
            yield piece.removeprefix(_MARK) if is_first else piece
            is_first = False
        if not content:
            return


def read_jsonl(path: Path, reading: Reading = PLAIN) -> Iterator[Document]:
    """One document for each row; lines end at LF alone, empty lines and rows without text are passed over.

    Args:
        path: A file with one JSON object on each line.
        reading: Names the field that holds the text.

    Raises:
        DataError: A line that is not UTF-8, not JSON, not an object, has no text in that field, or is longer
            than 256 MB; a damaged packing.
        StorageError: The file cannot be read.
    """
    offset = 0
    with open_unpacked(path) as stream:
        for number, content in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""), 1):
            place = f"{path}:{number}"
            if len(content) > MAX_LINE_BYTES:
                raise DataError(f"{place}: a line of more than {MAX_LINE_BYTES // 1_000_000} MB", _JSON_HINT)
            line = _decode_line(content, str(path), offset, reading.encoding_errors)
            offset += len(content)
            text = _row_text(line.removeprefix(_MARK).rstrip("\r\n"), place, reading)
            if text.strip():
                yield Document(text, place)


def _decode_line(content: bytes, name: str, offset: int, encoding_errors: EncodingErrors) -> str:
    try:
        return content.decode("utf-8", encoding_errors)
    except UnicodeDecodeError as error:
        raise _not_utf8(content, error.start, name, offset) from None


def _not_utf8(content: bytes, start: int, name: str, offset: int) -> DataError:
    """Why `content`, which begins at `offset`, cannot be decoded at `start`."""
    place = f"{name}: byte 0x{content[start]:02x} at offset {offset + start} is not UTF-8"
    if offset == 0 and content.startswith(_UTF16_MARKS):
        return DataError(f"{place}: this is UTF-16", "save the file as UTF-8")
    if offset == 0 and (packing := packing_of(content)):
        return DataError(f"{place}: this is {packing}", "unpack it, or end its name in .gz or .zst if it is one")
    return DataError(place, "save it as UTF-8, or add --encoding-errors replace")


def _row_text(line: str, place: str, reading: Reading) -> str:
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.colno}: not JSON: {error.msg}", _JSON_HINT) from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise DataError(f"{place}: not JSON that can be read: {error}", _JSON_HINT) from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise DataError(f"{place}: a {kind} where an object belongs", 'write {"text": "..."} on each line')
    column = reading.text_column
    if column not in row:
        raise no_column(place, "field", column, row)
    text = require_text(row[column], f"{place}: field {column!r}")
    return _without_surrogates(text, f"{place}: field {column!r}", reading.encoding_errors)


def _without_surrogates(text: str, place: str, encoding_errors: EncodingErrors) -> str:
    """JSON can spell half of a character (an escaped `d800`), which no UTF-8 text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if encoding_errors == "strict":
            half = f"\\u{ord(text[error.start]):04x}"
            raise DataError(
                f"{place} holds half a surrogate pair, {half}", "save it as UTF-8, or add --encoding-errors replace"
            ) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
