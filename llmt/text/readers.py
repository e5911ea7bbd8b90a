"""bytes of one file -> documents, with the place of every problem."""

import json
from collections.abc import Iterator
from pathlib import Path

from llmt.config.data import EncodingErrors
from llmt.errors import DataError, StorageError
from llmt.text.documents import Document

_MARK = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, *, encoding_errors: EncodingErrors = "strict") -> Document:
    """The whole file as one document, its line ends as they are.

    Raises:
        DataError: Bytes that are not UTF-8, or a NUL character: then it is not text.
        StorageError: The file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    text = _decode(content, path, 0, encoding_errors).removeprefix(_MARK)
    if "\0" in text:
        raise DataError(f"{path}: byte 0x00 at offset {content.index(0)}, so this is not text", _FORMATS_HINT)
    return Document(text, str(path))


def read_jsonl(
    path: Path, *, text_column: str = "text", encoding_errors: EncodingErrors = "strict"
) -> Iterator[Document]:
    """One document for each row; lines end at LF alone, empty lines and rows without text are passed over.

    Args:
        path: A file with one JSON object on each line.
        text_column: The field that holds the text.
        encoding_errors: `strict` stops at bytes that are not UTF-8, `replace` puts U+FFFD there.

    Raises:
        DataError: A line that is not UTF-8, not JSON, not an object, or has no text in that field.
        StorageError: The file cannot be read.
    """
    offset = 0
    try:
        with path.open("rb") as lines:
            for number, content in enumerate(lines, 1):
                line = _decode(content, path, offset, encoding_errors)
                offset += len(content)
                text = _row_text(
                    line.removeprefix(_MARK).rstrip("\r\n"), f"{path}:{number}", text_column, encoding_errors
                )
                if text.strip():
                    yield Document(text, f"{path}:{number}")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> StorageError:
    """What the operating system said about a file that is there but cannot be read."""
    return StorageError(f"{path}: cannot be read: {error.strerror or error}", "check its permissions")


_FORMATS_HINT = "give UTF-8 text: .txt, .md or .jsonl"


def _decode(content: bytes, path: Path, offset: int, encoding_errors: EncodingErrors) -> str:
    try:
        return content.decode("utf-8", encoding_errors)
    except UnicodeDecodeError as error:
        place = f"{path}: byte 0x{content[error.start]:02x} at offset {offset + error.start} is not UTF-8"
        if offset == 0 and content.startswith(_UTF16_MARKS):
            raise DataError(f"{place}: this is UTF-16", "save the file as UTF-8") from None
        raise DataError(place, "save it as UTF-8, or add --encoding-errors replace") from None


def _row_text(line: str, place: str, column: str, encoding_errors: EncodingErrors) -> str:
    if not line.strip():
        return ""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}:{error.colno}: not JSON: {error.msg}", "write one object on each line") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise DataError(f"{place}: not JSON that can be read: {error}", "write one object on each line") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise DataError(f"{place}: a {kind} where an object belongs", 'write {"text": "..."} on each line')
    if column not in row:
        names = ", ".join(str(name) for name in list(row)[:10]) or "nothing"
        raise DataError(f"{place}: no field {column!r}; it has {names}", "--text-column FIELD")
    text = row[column]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise DataError(f"{place}: field {column!r} is {kind}, not text", "--text-column FIELD")
    return _without_surrogates(text, f"{place}: field {column!r}", encoding_errors)


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
