"""files, folders, patterns, standard input, data sets -> documents, one at a time."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from llmt.config.data import EncodingErrors
from llmt.config.names import BUILTIN
from llmt.errors import DataError
from llmt.text.blocks import cut_blocks, split_pieces
from llmt.text.builtin import builtin_documents, builtin_fingerprint, builtin_instructions
from llmt.text.compressed import suffixes, unreadable
from llmt.text.documents import Document
from llmt.text.find import FIELD_SUFFIXES, PREFIX, STDIN, Source, could_be_on_the_hub, find_each, find_sources
from llmt.text.formats import RowFormat, recognise
from llmt.text.hub import fingerprint_data_set, read_data_set_rows
from llmt.text.readers import decode, read_pieces
from llmt.text.reading import PLAIN, DataFormat, Reading
from llmt.text.rowfiles import read_rows
from llmt.text.rows import Row
from llmt.text.stdin import spooled_input

PART_CHARACTERS = 250_000
"""So long a part of a text is at most, where there is a place to cut."""

_UNCUT_CHARACTERS = 1_000_000
_READ_BYTES = 1 << 20


def open_documents(
    sources: Sequence[str],
    reading: Reading = PLAIN,
    *,
    text_column: str | None = None,
    encoding_errors: EncodingErrors | None = None,
) -> Iterator[Document]:
    """Every document of every source, in order; at most a part of a file or a row is in memory.

    Names are looked up at once, files are read as the documents are taken. A text file that is longer than
    250,000 characters comes in parts, all but the last with `more`. A file without text inside a folder or a pattern
    is passed over; one that was named is an error.

    Args:
        sources: `builtin`, `builtin:instructions`, files, folders, glob patterns, `-` for standard input,
            `hf:NAME` for a data set of the hub, `hf:FOLDER` for one on the disk.
        reading: How they are read.
        text_column: Replaces that of `reading`.
        encoding_errors: Replaces that of `reading`.

    Raises:
        DataError: Something is missing, empty, of another format, undecodable or not what its name says.
        UsageError: Choices of `reading` that exclude each other.
        HubError: The hub does not have a data set or cannot be reached.
        StorageError: A file cannot be read.
    """
    each = open_each(sources, reading.but(text_column, encoding_errors))
    return chain.from_iterable(documents for _, documents in each)


def open_each(sources: Sequence[str], reading: Reading = PLAIN) -> Iterator[tuple[int, Iterator[Document]]]:
    """For each of the names its number, from 0, and its documents; these can be taken in any order, also in turn.

    `skip_bad` and `max_samples` are counted over all of them. Names are looked up at once.

    Raises:
        DataError: As `open_documents`; so do the other errors.
    """
    counts = _Counts(reading)
    each = [_Argument(found, reading, counts) for found in find_each(sources)]
    return ((number, argument.documents()) for number, argument in enumerate(each))


def open_stream(
    sources: Sequence[str], reading: Reading = PLAIN, file: int = 0, row: int = 0
) -> Iterator[tuple[int, int, Document]]:
    """The documents from a place on, each with the number of its file or data set and of its row or part in it.

    Files before `file` are not opened. Within it rows before `row` are passed over: in tables and data sets without
    reading them where they are stored in groups, in lines without looking into them.

    Raises:
        DataError: As `open_documents`; so do the other errors. A file without text is passed over.
    """
    counts = _Counts(reading)
    for number, source in enumerate(find_sources(sources)):
        if number >= file:
            opened = _Argument([source], reading, counts).numbered(source, row if number == file else 0)
            yield from ((number, place, document) for place, document in opened)


def open_blocks(sources: Sequence[str], reading: Reading = PLAIN) -> Iterator[str]:
    """The text of all sources in blocks for what counts words; a long text in several, a row in one.

    No block spans two documents, and no word spans two blocks; see `cut_blocks`. Memory does not grow with the
    size of a text file. `reading.max_samples` counts documents.

    Raises:
        DataError: As `open_documents`; so do the other errors.
    """
    documents = open_documents(sources, reading)
    return chain.from_iterable(cut_blocks([document.text]) for document in documents)


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
    files. Configuration, split and `max_samples` take part where they decide what is read; the columns, how a text is
    divided and the treatment of bad bytes do not.

    Raises:
        DataError: A name that stands for nothing that can be read.
        HubError: The hub does not have a data set or cannot be reached.
        StorageError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for found in find_each(sources):
        digest.update(f"{len(found)}\n".encode())  # which name stands for what decides what is split and mixed
        for source in found:
            digest.update(f"{_label(source)} {_content(source, reading)}\n".encode())
    if reading.max_samples is not None:
        digest.update(f"first {reading.max_samples}\n".encode())
    return digest.hexdigest()


def list_sources(sources: Sequence[str], reading: Reading = PLAIN) -> str:
    """The names and sizes of all that is behind some names, one a line, for who does not read it all.

    Of what has no size, standard input and data sets, the content or the revision stands in its place.

    Raises:
        DataError: A name that stands for nothing that can be read.
        HubError: The hub does not have a data set or cannot be reached.
        StorageError: A file cannot be read.
    """
    lines = []
    for source in find_sources(sources):
        if source.kind in ("text", "rows"):
            try:
                lines.append(f"{source.name} {Path(source.name).stat().st_size}")
            except OSError as error:
                raise unreadable(Path(source.name), error) from error
        else:
            lines.append(f"{source.name} {_content(source, reading)}")
    return "\n".join(lines)


class _Counts:
    """What is counted over all sources: documents still to be read, and rows that were passed over."""

    def __init__(self, reading: Reading) -> None:
        self._left = reading.max_samples
        self._skip_bad = reading.skip_bad
        self._on_bad = reading.on_bad
        self._bad = 0

    def finished(self) -> bool:
        """As many documents as were asked for were read."""
        return self._left == 0

    def document(self) -> None:
        """One more was read."""
        if self._left is not None:
            self._left -= 1

    def bad(self, error: DataError) -> None:
        """Pass over the row, or raise what is wrong with it."""
        if self._bad < self._skip_bad:
            self._bad += 1
            if self._on_bad is not None:
                self._on_bad(error)
            return
        if self._bad:
            hint = f"{self._bad:,} were passed over before it; for more of them --skip-bad NUMBER"
            raise DataError(error.message, hint) from error
        raise error


class _Argument:
    """What one name stands for."""

    def __init__(self, sources: Sequence[Source], reading: Reading, counts: _Counts) -> None:
        self._sources = sources
        self._reading = reading
        self._counts = counts
        self._said: tuple[DataFormat, tuple[str, ...]] | None = None

    def documents(self) -> Iterator[Document]:
        """All of them, which have to be something for a name that stands for itself."""
        found = 0
        for source in self._sources:
            before, is_part = found, False
            if self._counts.finished():
                return
            for _, document in self.numbered(source):
                if not is_part:
                    self._counts.document()
                    found += 1
                is_part = document.more
                yield document
                if self._counts.finished() and not is_part:
                    return
            if found == before:
                self._refuse_if_named(source)
        if not found:
            raise DataError(f"{self._sources[0].origin}: none of its files holds any text", "name files with text")

    def _refuse_if_named(self, source: Source) -> None:
        """A file without text may stand among others, not alone."""
        if source.kind == "stdin":
            raise DataError(f"{STDIN}: no text in standard input", "name a file with text")
        if source.named:
            raise DataError(f"{source.origin}: no text in it, only nothing or white space", "name a file with text")

    def numbered(self, source: Source, start: int = 0) -> Iterator[tuple[int, Document]]:
        """The documents of one file or data set from a row or part on, with their numbers."""
        if source.kind in ("rows", "data set"):
            return self._rows(source, start)
        if source.kind == "builtin":
            documents = builtin_documents() if source.name == BUILTIN else builtin_instructions()
        else:
            documents = self._texts(source)
        return islice(enumerate(documents), start, None)

    def _texts(self, source: Source) -> Iterator[Document]:
        """The documents of a text file: the whole of it, or what stands between separators."""
        pieces = _pieces(source, self._reading)
        if self._reading.split_on is None:
            yield from self._parts(pieces, source.name)
            return
        for line, part in split_pieces(pieces, self._reading.split_on):
            yield from self._parts(part, f"{source.name}:{line}")

    def _parts(self, pieces: Iterator[str], place: str) -> Iterator[Document]:
        """One text, in parts where it is long; nothing where it is blank."""
        held = ""  # the last block, and before it what begins a text with white space
        blank = True
        for block in cut_blocks(pieces, size=PART_CHARACTERS, uncut=_UNCUT_CHARACTERS):
            if not blank:
                yield Document(held, place, more=True)
                held = ""
            held += block
            blank = blank and not block.strip()
        if not blank:
            yield Document(held, place)
        else:
            self._empty(place)

    def _rows(self, source: Source, start: int) -> Iterator[tuple[int, Document]]:
        form = self._first_form(source) if start else None
        for number, row in enumerate(self._open_rows(source, start), start):
            try:
                if row.error is not None:
                    raise row.error
                if form is None:
                    form = recognise(list(row.values), self._reading, row.place, row.kind)
                    self._say(source, form.format_of(row), form.columns)
                document = form.document(row)
            except DataError as error:
                self._counts.bad(error)
                continue
            if document is None:
                self._empty(row.place)
            else:
                yield number, document

    def _first_form(self, source: Source) -> RowFormat | None:
        """What the rows are by the first that can be read, for who begins at a later one."""
        for row in self._open_rows(source, 0):
            if row.error is None:
                return recognise(list(row.values), self._reading, row.place, row.kind)
        return None

    def _open_rows(self, source: Source, start: int) -> Iterator[Row]:
        """Of a table only the columns that are needed; of records each has its own fields."""
        if source.kind == "data set":
            return read_data_set_rows(source.name, self._reading, self._choose(f"{PREFIX}{source.name}"), start)
        path = Path(source.name)
        is_table = suffixes(path)[0] not in FIELD_SUFFIXES
        return read_rows(path, self._reading, self._choose(source.name) if is_table else None, start)

    def _choose(self, place: str) -> Callable[[Sequence[str]], Sequence[str]]:
        return lambda names: recognise(names, self._reading, place, "column").needed

    def _say(self, source: Source, kind: DataFormat, columns: tuple[str, ...]) -> None:
        if self._said != (kind, columns) and self._reading.on_format is not None:
            prefix = PREFIX if source.kind == "data set" else ""
            self._reading.on_format(prefix + source.name, kind, columns)
        self._said = kind, columns

    def _empty(self, place: str) -> None:
        if self._reading.on_empty is not None:
            self._reading.on_empty(place)


def _pieces(source: Source, reading: Reading) -> Iterator[str]:
    """The text of a file or of standard input, a megabyte at a time."""
    if source.kind == "text":
        yield from read_pieces(Path(source.name), reading.encoding_errors)
        return
    path = spooled_input()
    try:
        with path.open("rb") as stream:
            yield from decode(stream, STDIN, reading.encoding_errors)
    except OSError as error:
        raise unreadable(path, error) from error


def _label(source: Source) -> str:
    """What else than its content decides how a source is read."""
    if source.kind == "builtin":
        return source.name
    inner, packing = suffixes(source.name)
    return source.kind + {"rows": inner + packing, "text": packing}.get(source.kind, "")


def _content(source: Source, reading: Reading) -> str:
    if source.kind == "builtin":
        return builtin_fingerprint()
    if source.kind == "data set":
        return fingerprint_data_set(source.name, reading)
    return _file_digest(spooled_input() if source.kind == "stdin" else Path(source.name))


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as content:
            while part := content.read(_READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
