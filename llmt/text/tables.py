"""parquet and arrow files -> rows. A door of pyarrow.

Only the columns that are needed are read, a few hundred rows at a time.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

from llmt.errors import DataError, LlmtError, MissingPackageError
from llmt.text.compressed import BUFFER_BYTES, open_unpacked, suffixes
from llmt.text.rows import Choose, Row

BATCH_ROWS = 256
_ARROW_FILE = b"ARROW1"
_OLD_FEATHER = b"FEA1"


def read_table(path: Path, choose: Choose | None = None, start: int = 0) -> Iterator[Row]:
    """The rows of a .parquet, .arrow or .feather file, packed or not.

    Args:
        path: Of arrow both formats are read, the stream and the file, by what is in them.
        choose: Which columns are read; None reads all.
        start: The first row, from 0; groups of rows before it are not read.

    Raises:
        DataError: It is damaged, cut off, or has two columns of one name; what `choose` raises.
        StorageError: The file cannot be read.
        MissingPackageError: pyarrow cannot be imported.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackageError("pyarrow", str(error)) from error
    is_parquet = suffixes(path)[0] == ".parquet"
    with _open_seekable(path) as file:
        try:
            batches = _parquet(path, file, choose, start) if is_parquet else _arrow(path, file, choose)
            for number, batch in batches:
                for first in range(max(start - number, 0), batch.num_rows, BATCH_ROWS):
                    yield from _rows(path, batch.slice(first, BATCH_ROWS), number + first + 1)
        except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            if isinstance(error, LlmtError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            said = " ".join(str(error).split())
            raise DataError(f"{path}: damaged, or no {suffixes(path)[0][1:]} file: {said}", "get it again") from error


@contextmanager
def _open_seekable(path: Path) -> Iterator[BinaryIO]:
    """The file; what is packed is unpacked into a temporary file, for the columns are found from the end."""
    with open_unpacked(path) as stream:
        if not suffixes(path)[1]:
            yield stream
            return
        with tempfile.TemporaryFile(prefix="llmt-table-") as file:
            copyfileobj(stream, file, BUFFER_BYTES)
            file.seek(0)
            yield file


def _parquet(path: Path, file: BinaryIO, choose: Choose | None, start: int) -> Iterator[tuple[int, Any]]:
    """The batches from the group of rows on that holds row `start`, each with the number of its first row."""
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file, pre_buffer=False)
    columns = _chosen(path, table.schema_arrow.names, choose)
    number, groups = 0, list(range(table.num_row_groups))
    while groups and number + (rows := table.metadata.row_group(groups[0]).num_rows) <= start:
        number += rows
        del groups[0]
    for batch in table.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
        yield number, batch
        number += batch.num_rows


def _arrow(path: Path, file: BinaryIO, choose: Choose | None) -> Iterator[tuple[int, Any]]:
    """The batches, each with the number of its first row."""
    from pyarrow import ipc

    head = file.read(len(_ARROW_FILE))
    file.seek(0)
    if head.startswith(_OLD_FEATHER):
        raise DataError(f"{path}: feather of the first version, which few can read", "save it as .parquet")
    if head == _ARROW_FILE:
        table = ipc.open_file(file)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        table = ipc.open_stream(file)
        batches = iter(table)
    columns = _chosen(path, table.schema.names, choose)
    number = 0
    for batch in batches:
        yield number, batch.select(columns)
        number += batch.num_rows


def _chosen(path: Path, names: Sequence[str], choose: Choose | None) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are named {twice!r}", "rename one of them")
    return list(names if choose is None else choose(names))


def _rows(path: Path, batch: Any, number: int) -> Iterator[Row]:
    """The rows of a batch; where one of them holds bytes that are no text, that one alone is bad."""
    places = [f"{path}: row {number + place}" for place in range(batch.num_rows)]
    try:
        for place, values in zip(places, batch.to_pylist(), strict=True):
            yield Row(place, values, kind="column")
    except UnicodeDecodeError:
        for index, place in enumerate(places):
            yield _row(batch.slice(index, 1), place)


def _row(batch: Any, place: str) -> Row:
    values: dict[str, object] = {}
    for name in batch.schema.names:
        try:
            values[name] = batch.column(name)[0].as_py()
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x}"
            problem = DataError(f"{place}: column {name!r} holds {byte}, not UTF-8", "save it as UTF-8")
            return Row(place, error=problem, kind="column")
    return Row(place, values, kind="column")
