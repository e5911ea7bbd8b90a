"""files, folders, patterns, standard input, data sets -> documents, one at a time."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from llmt.config.data import BUILTIN, EncodingErrors
from llmt.errors import DataError
from llmt.text.blocks import cut_blocks
from llmt.text.builtin import builtin_documents, builtin_fingerprint, builtin_instructions
from llmt.text.compressed import suffixes, unreadable
from llmt.text.documents import Document
from llmt.text.find import PREFIX, STDIN, Source, could_be_on_the_hub, find_sources
from llmt.text.hub import fingerprint_data_set, read_data_set
from llmt.text.readers import decode, read_jsonl, read_pieces
from llmt.text.reading import PLAIN, Reading

_READ_BYTES = 1 << 20
_Part = TypeVar("_Part")


def open_documents(
    sources: Sequence[str],
    reading: Reading = PLAIN,
    *,
    text_column: str | None = None,
    encoding_errors: EncodingErrors | None = None,
) -> Iterator[Document]:
    """Every document of every source, in order; at most one file or row is in memory.

    Names are looked up at once, files are read as the documents are taken. A file without text inside a
    folder or a pattern is passed over; one that was named is an error.

    Args:
        sources: `builtin`, `builtin:instructions`, files, folders, glob patterns, `-` for standard input,
            `hf:NAME` for a data set of the hub, `hf:FOLDER` for one on the disk.
        reading: How they are read.
        text_column: Replaces that of `reading`.
        encoding_errors: Replaces that of `reading`.

    Raises:
        DataError: Something is missing, empty, of another format, undecodable or not what its name says.
        HubError: The hub does not have a data set or cannot be reached.
        StorageError: A file cannot be read.
    """
    reading = reading.but(text_column, encoding_errors)
    return islice(_read_all(find_sources(sources), reading, _documents), reading.max_samples)


def open_blocks(sources: Sequence[str], reading: Reading = PLAIN) -> Iterator[str]:
    """The text of all sources in blocks of about four million characters, for what counts words.

    No block spans two documents, and no word spans two blocks; see `cut_blocks`. Memory does not grow with the
    size of a text file. `reading.max_samples` counts documents.

    Raises:
        DataError: As `open_documents`.
        HubError: The hub does not have a data set or cannot be reached.
        StorageError: A file cannot be read.
    """
    documents = _read_all(find_sources(sources), reading, _document_blocks)
    return chain.from_iterable(islice(documents, reading.max_samples))


def open_texts(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    text_column: str = "text",
    max_samples: int | None = None,
) -> Iterator[str]:
    """The text behind one name, in blocks: anything that `open_documents` takes, else a data set of the hub.

    Args:
        name: What is here wins; `hf:` says that the hub is meant.
        config: Which configuration of a data set.
        split: Which part of a data set.
        text_column: Field or column that holds the text.
        max_samples: Read so many documents at most.

    Raises:
        DataError: As `open_documents`; or a configuration for what is no data set.
        HubError: Nothing here has this name, and the hub does not have it or cannot be reached.
        StorageError: A file cannot be read.
        UsageError: `max_samples` is less than 1.
    """
    reading = Reading(text_column, config=config, split=split, max_samples=max_samples)
    source = f"{PREFIX}{name}" if could_be_on_the_hub(name) else name
    if config is not None and all(found.kind != "data set" for found in find_sources([source])):
        raise DataError(f"{name}: no configuration {config!r}; only data sets have them", "leave it out")
    return open_blocks([source], reading)


def fingerprint_sources(sources: Sequence[str], reading: Reading = PLAIN) -> str:
    """SHA-256 over the content of all sources in order; neither names nor times take part.

    Of a packed file the packed content counts, of a data set on the hub its revision, of one in a folder all
    files. Configuration, split and `max_samples` take part where they decide what is read; the column and the
    treatment of bad bytes do not.

    Raises:
        DataError: A name that stands for nothing that can be read, or for standard input.
        HubError: The hub does not have a data set or cannot be reached.
        StorageError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for source in find_sources(sources):
        digest.update(f"{_label(source)} {_content(source, reading)}\n".encode())
    if reading.max_samples is not None:
        digest.update(f"first {reading.max_samples}\n".encode())
    return digest.hexdigest()


def _read_all(
    sources: Sequence[Source], reading: Reading, read: Callable[[Source, Reading], Iterator[_Part]]
) -> Iterator[_Part]:
    """What `read` makes of each source, which has to be something for each that was named."""
    holds_text: dict[str, bool] = {}
    for source in sources:
        empty = True
        for part in read(source, reading):
            empty = False
            yield part
        if empty and source.kind == "stdin":
            raise DataError(f"{STDIN}: no text in standard input, or it was read before", "name a file with text")
        if empty and source.named:
            raise DataError(f"{source.origin}: no text in it, only nothing or white space", "name a file with text")
        holds_text[source.origin] = holds_text.get(source.origin, False) or not empty
    for origin, found in holds_text.items():
        if not found:
            raise DataError(f"{origin}: none of its files holds any text", "name files with text")


def _documents(source: Source, reading: Reading) -> Iterator[Document]:
    return (document for document in _read(source, reading) if document.text.strip())


def _document_blocks(source: Source, reading: Reading) -> Iterator[Iterator[str]]:
    """For each document with text the blocks of it; a file is read while they are taken."""
    if source.kind not in ("text", "stdin"):
        for document in _documents(source, reading):
            yield cut_blocks([document.text])
        return
    blocks = cut_blocks(_pieces(source, reading))
    for block in blocks:
        if block.strip():
            yield chain([block], blocks)
            return


def _read(source: Source, reading: Reading) -> Iterator[Document]:
    if source.kind == "builtin":
        yield from builtin_documents() if source.name == BUILTIN else builtin_instructions()
    elif source.kind == "rows":
        yield from read_jsonl(Path(source.name), reading)
    elif source.kind == "data set":
        yield from read_data_set(source.name, reading)
    else:
        yield Document("".join(_pieces(source, reading)), source.name)


def _pieces(source: Source, reading: Reading) -> Iterator[str]:
    """The text of a file or of standard input, a megabyte at a time."""
    if source.kind == "text":
        yield from read_pieces(Path(source.name), reading.encoding_errors)
        return
    try:
        yield from decode(sys.stdin.buffer, STDIN, reading.encoding_errors)
    except OSError as error:
        raise unreadable(Path(STDIN), error) from error


def _label(source: Source) -> str:
    """What else than its content decides how a source is read."""
    if source.kind == "builtin":
        return source.name
    return source.kind + suffixes(Path(source.name))[1] if source.kind in ("text", "rows") else source.kind


def _content(source: Source, reading: Reading) -> str:
    if source.kind == "stdin":
        raise DataError(
            f"{STDIN}: standard input can be read only once, and this reads its text several times",
            "save it to a file, and name that",
        )
    if source.kind == "builtin":
        return builtin_fingerprint()
    if source.kind == "data set":
        return fingerprint_data_set(source.name, reading)
    return _file_digest(Path(source.name))


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as content:
            while part := content.read(_READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
