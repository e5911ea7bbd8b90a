"""A file of `torch.save` -> its description and where each storage lies. No number is read.

Since PyTorch 1.6 it is a zip archive: `NAME/data.pkl`, a pickle that describes everything but the numbers, and one
stored member `NAME/data/KEY` for each storage, with its CRC-32. Before that it was five pickles in a row (a magic
number, a version, a description of the machine, the value, the keys of the storages), and then for each key its
number of elements in 8 bytes and the elements, without any checksum.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from llmt.checkpoints.pickle_values import PickleRefusedError, read_pickle
from llmt.checkpoints.reading import FETCH_AGAIN, RESAVE, file_size, read_errors, read_exactly, shown
from llmt.checkpoints.torch_globals import Storage, refer_to_storage, resolve_global
from llmt.errors import ModelFileError
from llmt.units import format_size

MAX_PICKLE_BYTES = 64 * 2**20
MAX_LEGACY_BYTES = 16 * 2**20
_LEGACY_BEGIN = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_DIRECTORY = 12 * 2**20
# The records of zip64, and the last record.
_END_OF_ARCHIVE = 76 + 22


@dataclass(frozen=True)
class Piece:
    """Where the bytes of a storage lie in the file, and their CRC-32 where the file keeps one."""

    name: str
    begin: int
    size: int
    crc: int | None


@dataclass(frozen=True)
class Archive:
    """What a file of `torch.save` holds: the value, with storages in place of numbers, and where those lie."""

    value: object
    pieces: Mapping[str, Piece]


def read_archive(file: FileIO, path: Path) -> Archive:
    """Read everything but the numbers of an open file of `torch.save`, and check it.

    Raises:
        ModelFileError: Damaged, unsafe, or not a file of `torch.save`; the message says what it is.
    """
    with read_errors(path):
        head = file.read(512) or b""
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, path)
    if head.startswith(_LEGACY_BEGIN):
        return _read_legacy(file, path)
    raise _other_kind(head, path)


def _other_kind(head: bytes, path: Path) -> ModelFileError:
    """What is often found under these file names, each with its own message."""
    renamed = path.with_suffix(".safetensors").name
    kinds = (
        (not head, "is empty", FETCH_AGAIN),
        (head.startswith(b"version https://git-lfs"), "is a git-lfs pointer, not the file itself", "git lfs pull"),
        (head.startswith(b"\x80"), "is a plain pickle, not a file of torch.save", RESAVE),
        (head[8:9] == b"{", "is a safetensors file already", f"rename it to {renamed}"),
        (head.lstrip().startswith(b"<"), "is a web page, not the file itself", FETCH_AGAIN),
        (True, "is not a file of torch.save", FETCH_AGAIN),
    )
    reason, hint = next((reason, hint) for found, reason, hint in kinds if found)
    return ModelFileError(f"{path}: {reason}", hint)


def _read_zip(file: FileIO, path: Path) -> Archive:
    members = _read_directory(file, path)
    tops = [name.removesuffix("/data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise ModelFileError(f"{path}: is a zip archive, but not one of torch.save", FETCH_AGAIN)
    if (order := members.get(f"{tops[0]}/byteorder")) and _member_bytes(file, order, path) != b"little":
        raise ModelFileError(f"{path}: was written on a big-endian machine", RESAVE)
    program = _member_bytes(file, members[f"{tops[0]}/data.pkl"], path)
    data = f"{tops[0]}/data/"
    pieces = {name.removeprefix(data): member for name, member in members.items() if name.startswith(data)}
    return Archive(_read_value(io.BytesIO(program), path), pieces)


def _read_directory(file: FileIO, path: Path) -> dict[str, Piece]:
    """Every member of the archive by name: stored, named once, none overlapping, none outside the file."""
    members: dict[str, Piece] = {}
    end = 0
    for entry in sorted(_list_entries(file, path), key=lambda entry: entry.header_offset):
        name, parts = entry.filename, entry.filename.split("/")
        if ".." in parts or "\\" in name or name.startswith("/") or name in members:
            raise damaged(path, f"the member {shown(name)} is named twice or leaves the archive")
        if _is_packed(entry):
            raise damaged(path, f"the member {shown(name)} is compressed; torch.save never does that")
        begin = _data_begin(file, entry.header_offset, path)
        if entry.header_offset < end or begin + entry.file_size > file_size(file):
            raise damaged(path, f"the member {shown(name)} overlaps another or the end of the file")
        end = begin + entry.file_size
        members[name] = Piece(name, begin, entry.file_size, entry.CRC)
    return members


def _list_entries(file: FileIO, path: Path) -> list[zipfile.ZipInfo]:
    announced = _require_plain_end(file, path)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, OSError) as error:
        raise ModelFileError(f"{path}: is truncated or damaged ({error})", FETCH_AGAIN) from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ModelFileError(f"{path}: is a TorchScript program, not weights", RESAVE)
    if min((entry.header_offset for entry in entries), default=0):
        raise damaged(path, "something stands before its first member")
    if len(entries) != announced:
        raise damaged(path, f"its directory has {len(entries):,} members, and announces {announced:,}")
    return entries


def _require_plain_end(file: FileIO, path: Path) -> int:
    """Check the record at the end of an archive, and return the number of members that it announces.

    Without a comment it can only be the last 22 bytes, so that no two readers find different ones. The directory is
    made into objects all at once, so its length is looked at before.
    """
    size = file_size(file)
    tail = bytearray(min(size, _END_OF_ARCHIVE))
    read(file, size - len(tail), memoryview(tail), path)
    end = tail[-22:]
    if not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise damaged(path, "it is truncated, or something follows its directory")
    count, length = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if tail[-42:-38] == b"PK\x06\x07":  # the larger records of zip64 stand before it, and count
        count, length = (int.from_bytes(tail[begin : begin + 8], "little") for begin in (-66, -58))
    if length > _MAX_DIRECTORY:
        raise damaged(path, f"its directory of {format_size(length)} is longer than any of torch.save")
    return count


def _is_packed(entry: zipfile.ZipInfo) -> bool:
    """Compressed or encrypted."""
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    return not stored or bool(entry.flag_bits & 1)


def _data_begin(file: FileIO, offset: int, path: Path) -> int:
    """Where a member's bytes begin: after its own header, which may be longer than the directory says."""
    header = bytearray(30)
    read(file, offset, memoryview(header), path)
    if not header.startswith(b"PK\x03\x04"):
        raise damaged(path, f"no member begins at byte {offset}")
    return offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _member_bytes(file: FileIO, member: Piece, path: Path) -> bytes:
    if member.size > MAX_PICKLE_BYTES:
        size, limit = format_size(member.size), format_size(MAX_PICKLE_BYTES)
        raise ModelFileError(f"{path}: {size} of data beside the tensors, at most {limit} is read", RESAVE)
    data = bytearray(member.size)
    read(file, member.begin, memoryview(data), path)
    if zlib.crc32(data) != member.crc:
        raise damaged(path, f"CRC-32 of {shown(member.name)} differs")
    return bytes(data)


def _read_value(program: BinaryIO, path: Path) -> object:
    try:
        return read_pickle(program, resolve_global, refer_to_storage)
    except PickleRefusedError as error:
        raise ModelFileError(f"{path}: {error}; nothing in it was run", RESAVE) from error


def _read_legacy(file: FileIO, path: Path) -> Archive:
    """The format before PyTorch 1.6."""
    storages: dict[str, Storage] = {}

    def refer(identifier: object) -> Storage:
        storage = refer_to_storage(identifier)
        known = storages.setdefault(storage.key, storage)
        if (known.dtype, known.nbytes) != (storage.dtype, storage.nbytes):
            raise PickleRefusedError("is damaged (two storages have one key)")
        return known

    described = bytearray(min(file_size(file), MAX_LEGACY_BYTES))
    read(file, 0, memoryview(described), path)
    reader = io.BytesIO(described)
    try:
        magic, version, machine = (_plain(reader, path) for _ in range(3))
        value = read_pickle(reader, resolve_global, refer)
        keys = _plain(reader, path)
        begin = reader.tell()
    except PickleRefusedError as error:
        raise ModelFileError(f"{path}: {error}; nothing in it was run", RESAVE) from error
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION or not isinstance(machine, dict):
        raise damaged(path, "it is of no known version")
    if machine.get("little_endian") is not True:
        raise ModelFileError(f"{path}: was written on a big-endian machine", RESAVE)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise damaged(path, "its storages are not those that its tensors need")
    return Archive(value, _legacy_pieces(file, path, begin, [storages[str(key)] for key in keys]))


def _plain(reader: BinaryIO, path: Path) -> object:
    """One of the pickles around the value: they hold neither storages nor names to import."""
    return read_pickle(reader, resolve_global, refer_to_storage)


def _legacy_pieces(file: FileIO, path: Path, begin: int, storages: list[Storage]) -> dict[str, Piece]:
    pieces = {}
    for storage in storages:
        count = bytearray(8)
        read(file, begin, memoryview(count), path)
        if int.from_bytes(count, "little") * storage.width != storage.nbytes:
            raise damaged(path, f"the storage {shown(storage.key)} has another length than its tensors say")
        pieces[storage.key] = Piece(f"storage {storage.key}", begin + 8, storage.nbytes, None)
        begin += 8 + storage.nbytes
    if begin != file_size(file):
        raise damaged(path, "it is truncated" if begin > file_size(file) else "something follows its storages")
    return pieces


def read(file: FileIO, offset: int, buffer: memoryview, path: Path) -> None:
    """Fill `buffer` from `offset` of an open file that was measured before.

    Raises:
        ModelFileError: It cannot be read, or ends before.
    """
    with read_errors(path):
        try:
            if not 0 <= offset <= file_size(file):
                raise EOFError
            read_exactly(file, offset, buffer)
        except EOFError as error:
            raise damaged(path, "it is truncated, or became shorter while it was read") from error


def damaged(path: Path, reason: str) -> ModelFileError:
    """The error for a file whose parts do not fit each other."""
    return ModelFileError(f"{path}: damaged: {reason}", FETCH_AGAIN)
