"""bytes of one file -> text and rows, with the place of every problem."""

import codecs
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llmt.errors import DataError
from llmt.text.compressed import open_unpacked, packing_of
from llmt.text.reading import PLAIN, Reading
from llmt.text.rows import Row

if TYPE_CHECKING:
    from llmt.config.data import EncodingErrors

PIECE_BYTES = 1 << 20
MAX_LINE_BYTES = 256_000_000
_MARK = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_FORMATS_HINT = "give UTF-8 text: .txt, .md or .jsonl"
_JSON_HINT = "write one object on each line"


def read_pieces(path: Path, encoding_errors: "EncodingErrors" = "strict") -> Iterator[str]:
    """The text of a whole file in pieces of up to a million characters, its line ends as they are.

    Raises:
        DataError: Bytes that are not UTF-8, a NUL character (then it is not text), or a damaged packing.
        StorageError: The file cannot be read.
    """
    with open_unpacked(path) as stream:
        yield from decode(stream, str(path), encoding_errors)


def decode(stream: BinaryIO, name: str, encoding_errors: "EncodingErrors") -> Iterator[str]:
    """The text of a stream of UTF-8, in pieces of up to a million characters, without a byte order mark.

    Args:
        stream: Bytes.
        name: What errors call it. Offsets and lines count in the stream, unpacked where it was packed.
        encoding_errors: `strict` stops at bytes that are not UTF-8, `replace` puts U+FFFD there.

    Raises:
        DataError: Bytes that are not UTF-8, or a NUL character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(encoding_errors)
    offset, line, is_first = 0, 1, True
    while True:
        content = stream.read(PIECE_BYTES)
        held = decoder.getstate()[0]  # the first bytes of a character that the last piece cut
        try:
            piece = decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line += content.count(b"\n", 0, max(error.start - len(held), 0))
            raise _not_utf8(held + content, error.start, f"{name}:{line}", offset - len(held)) from None
        if b"\0" in content:
            start = content.index(0)
            line += content.count(b"\n", 0, start)
            raise DataError(f"{name}:{line}: byte 0x00 at offset {offset + start}, so this is not text", _FORMATS_HINT)
        offset += len(content)
        line += content.count(b"\n")
        if piece:
            yield piece.removeprefix(_MARK) if is_first else piece
            is_first = False
        if not content:
            return


def read_json_lines(path: Path, reading: Reading = PLAIN, start: int = 0) -> Iterator[Row]:
    """One row for each line that is not blank; lines end at LF alone.

    Args:
        path: A file with one JSON object on each line.
        reading: How bad bytes are treated.
        start: The first row, from 0; lines before it are not looked into.

    Raises:
        DataError: A line longer than 256 MB; a damaged packing.
        StorageError: The file cannot be read.
    """
    offset = 0
    with open_unpacked(path) as stream:
        for number, content in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""), 1):
            place = f"{path}:{number}"
            if len(content) > MAX_LINE_BYTES:
                raise DataError(f"{place}: a line of more than {MAX_LINE_BYTES // 1_000_000} MB", _JSON_HINT)
            if start:
                start -= bool(content.decode("utf-8", "replace").removeprefix(_MARK).strip())
                offset += len(content)
                continue
            try:
                line = _decode_line(content, place, offset, reading.encoding_errors).removeprefix(_MARK)
                if line.strip():
                    yield Row(place, _object(line.rstrip("\r\n"), place, reading.encoding_errors))
                elif reading.on_empty is not None:
                    reading.on_empty(place)
            except DataError as error:
                yield Row(place, error=error)
            offset += len(content)


def _decode_line(content: bytes, name: str, offset: int, encoding_errors: "EncodingErrors") -> str:
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


def checked_object(value: object, place: str, encoding_errors: "EncodingErrors", hint: str) -> dict[str, object]:
    """What JSON gave for a row, if it is one and all of it is text that can be written.

    Raises:
        DataError: It is no object, or holds half of a character (an escaped `d800`).
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: a {type(value).__name__} where an object belongs", hint)
    try:
        return {name: _mended(part, f"{place}: field {name!r}", encoding_errors) for name, part in value.items()}
    except RecursionError:
        raise DataError(f"{place}: nested too deeply to be read", hint) from None


def _object(line: str, place: str, encoding_errors: "EncodingErrors") -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.colno}: not JSON: {error.msg}", _JSON_HINT) from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise DataError(f"{place}: not JSON that can be read: {error}", _JSON_HINT) from None
    return checked_object(row, place, encoding_errors, 'write {"text": "..."} on each line')


def _mended(value: object, place: str, encoding_errors: "EncodingErrors") -> object:
    """The value without halves of characters, also inside lists and objects."""
    if isinstance(value, str):
        return _without_surrogates(value, place, encoding_errors)
    if isinstance(value, list):
        return [_mended(part, place, encoding_errors) for part in value]
    if isinstance(value, dict):
        return {name: _mended(part, place, encoding_errors) for name, part in value.items()}
    return value


def _without_surrogates(text: str, place: str, encoding_errors: "EncodingErrors") -> str:
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
