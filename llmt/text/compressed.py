"""a file, packed or not -> a stream of its bytes, unpacked on the way. The door of pyarrow."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llmt.errors import DataError, MissingPackageError, StorageError

PACKED_SUFFIXES = (".gz", ".zst")
BUFFER_BYTES = 1 << 20

# Text seldom packs better than 50 to 1. What grows more than this, once it is large, was made to fill memory.
MAX_EXPANSION = 200
EXPANSION_IS_CHECKED_FROM = 256_000_000

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_ZSTD_NOTE = b"\x2a\x4d\x18"  # a frame that is skipped; some packers begin with one
_KINDS = {".gz": "gzip", ".zst": "zstd"}
_TAR_MAGIC = slice(257, 262)


def suffixes(path: str | Path) -> tuple[str, str]:
    """The suffix of what is inside and that of the packing, in small letters; `a.txt.gz` -> `.txt`, `.gz`."""
    stem, outer = os.path.splitext(path)
    if outer.lower() not in PACKED_SUFFIXES:
        return outer.lower().rstrip("."), ""
    return os.path.splitext(stem)[1].lower().rstrip("."), outer.lower()


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file; those of .gz and .zst are unpacked as they are read, about a megabyte at a time.

    Raises:
        DataError: A packed file that is damaged, cut off, packed twice, an archive of several files, or that
            grows beyond all measure. Reading raises it too.
        StorageError: The file cannot be read.
        MissingPackageError: pyarrow, which unpacks .zst, cannot be imported.
    """
    packing = suffixes(path)[1]
    try:
        with path.open("rb") as file:
            if not packing:
                yield file
                return
            _require_packing(file, path, packing)
            with io.BufferedReader(_Unpacked(path, file, packing), BUFFER_BYTES) as stream:
                _require_plain(stream.peek(512), path)
                yield stream
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> StorageError:
    """What the operating system said about a file that is there but cannot be read."""
    return StorageError(f"{path}: cannot be read: {error.strerror or error}", "check its permissions")


class _Unpacked(io.RawIOBase):
    """What is inside a packed file; whatever its library says about damage becomes a `DataError`."""

    def __init__(self, path: Path, file: BinaryIO, packing: str) -> None:
        self._path = path
        self._file = file
        self._is_gzip = packing == ".gz"
        self._stream: Any = gzip.GzipFile(fileobj=file) if self._is_gzip else _open_zstd(file)
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count: int = self._stream.readinto(buffer)
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._damaged(error) from error
        self._done += count
        if self._done > max(EXPANSION_IS_CHECKED_FROM, MAX_EXPANSION * self._file.tell()):
            raise DataError(
                f"{self._path}: grows more than {MAX_EXPANSION} times when it is unpacked, which text does not",
                "unpack it yourself if it is what you want",
            )
        return count

    def _damaged(self, error: Exception) -> DataError:
        kind = _KINDS[".gz" if self._is_gzip else ".zst"]
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            why = f"the {kind} data ends too early, {self._done:,} bytes into the text"
        else:
            why = f"damaged {kind} data, after {self._done:,} bytes of text"
        return DataError(f"{self._path}: {why}", "get the file again")


def _open_zstd(file: BinaryIO) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackageError("pyarrow", str(error)) from error
    if not pyarrow.Codec.is_available("zstd"):
        raise MissingPackageError("pyarrow", "it was built without zstd")
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


def _require_packing(file: io.BufferedReader, path: Path, packing: str) -> None:
    """The file is what its suffix says; an empty one has no text, which is said elsewhere."""
    head = file.peek(16)[:16]
    kind = packing_of(head)
    if head and kind != _KINDS[packing]:
        really = f", but {kind}" if kind else ""
        raise DataError(f"{path}: this is not {_KINDS[packing]}{really}", "give it the suffix of what it is")


def _require_plain(head: bytes, path: Path) -> None:
    """Refuse what is still packed after one unpacking."""
    if head[_TAR_MAGIC] == b"ustar":
        raise DataError(f"{path}: a tar archive of several files is inside", "unpack it and name the folder")
    kind = packing_of(head)
    if kind:
        raise DataError(f"{path}: {kind} is inside, so this is packed twice", "unpack it once")


def packing_of(head: bytes) -> str:
    """The name of the packing that a file with these first bytes has, or nothing."""
    if head[1:4] == _ZSTD_NOTE and head[0] & 0xF0 == 0x50:
        return "zstd"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
