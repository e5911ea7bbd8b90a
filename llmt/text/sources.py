"""files, folders, patterns -> documents, one at a time."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from llmt.config.data import BUILTIN, BUILTIN_INSTRUCTIONS, EncodingErrors
from llmt.errors import DataError
from llmt.text.builtin import builtin_documents, builtin_fingerprint, builtin_instructions
from llmt.text.documents import Document
from llmt.text.readers import read_jsonl, read_text, unreadable

TEXT_SUFFIXES = (".txt", ".md", ".text")
ROW_SUFFIXES = (".jsonl",)
SUPPORTED = "this version reads .txt, .md and .jsonl"
_TABLES = {".parquet", ".arrow", ".feather", ".csv", ".tsv", ".json", ".xlsx", ".sqlite", ".db"}
_ARCHIVES = {".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar"}
_PAGES = {".pdf", ".doc", ".docx", ".odt", ".epub", ".png", ".jpg", ".jpeg"}
_WEIGHTS = {".npy", ".npz", ".bin", ".pt", ".pth", ".pkl", ".safetensors", ".gguf"}
_READ_BYTES = 1 << 20

Kind = Literal["builtin", "text", "rows"]


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read.

    Attributes:
        name: The built-in corpus' name, or the path of a file.
        kind: How it is read.
        named: The user named this very file, so that it must hold text.
        origin: The argument that it came from.
    """

    name: str
    kind: Kind
    named: bool
    origin: str


def open_documents(
    sources: Sequence[str], *, text_column: str = "text", encoding_errors: EncodingErrors = "strict"
) -> Iterator[Document]:
    """Every document of every source, in order; at most one file or row is in memory.

    Names are looked up at once, files are read as the documents are taken. A file without text inside a
    folder or a pattern is passed over; one that was named is an error.

    Args:
        sources: `builtin`, `builtin:instructions`, files, folders, glob patterns.
        text_column: Field of a .jsonl row that holds the text.
        encoding_errors: `strict` stops at bytes that are not UTF-8, `replace` puts U+FFFD there.

    Raises:
        DataError: Something is missing, empty, of another format, undecodable or not what its name says.
        StorageError: A file cannot be read.
    """
    return _read_all(find_sources(sources), text_column, encoding_errors)


def find_sources(sources: Sequence[str]) -> list[Source]:
    """The files behind the names, sorted within each folder and pattern; reads none of them.

    Raises:
        DataError: A name that stands for nothing that can be read.
        StorageError: A folder that may not be searched.
    """
    if not sources:
        raise DataError("data.sources: no text is named", "--set data.sources=builtin")
    found: list[Source] = []
    for name in sources:
        try:
            found += _find(name)
        except OSError as error:
            raise unreadable(Path(name), error) from error
    return found


def fingerprint_sources(sources: Sequence[str]) -> str:
    """SHA-256 over the content of all sources in order; neither names nor times take part.

    Raises:
        DataError: A name that stands for nothing that can be read.
        StorageError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for source in find_sources(sources):
        content = builtin_fingerprint() if source.kind == "builtin" else _file_digest(Path(source.name))
        label = source.name if source.kind == "builtin" else source.kind
        digest.update(f"{label} {content}\n".encode())
    return digest.hexdigest()


def _read_all(sources: Sequence[Source], text_column: str, encoding_errors: EncodingErrors) -> Iterator[Document]:
    holds_text: dict[str, bool] = {}
    for source in sources:
        empty = True
        for document in _read(source, text_column, encoding_errors):
            if document.text.strip():
                empty = False
                yield document
        if empty and source.named:
            raise DataError(f"{source.name}: no text in it, only nothing or white space", "name a file with text")
        holds_text[source.origin] = holds_text.get(source.origin, False) or not empty
    for origin, found in holds_text.items():
        if not found:
            raise DataError(f"{origin}: none of its files holds any text", "name files with text")


def _read(source: Source, text_column: str, encoding_errors: EncodingErrors) -> Iterator[Document]:
    if source.kind == "builtin":
        yield from builtin_documents() if source.name == BUILTIN else builtin_instructions()
    elif source.kind == "rows":
        yield from read_jsonl(Path(source.name), text_column=text_column, encoding_errors=encoding_errors)
    else:
        yield read_text(Path(source.name), encoding_errors=encoding_errors)


def _find(name: str) -> list[Source]:
    if name in (BUILTIN, BUILTIN_INSTRUCTIONS):
        return [Source(name, "builtin", True, name)]
    if name.startswith("builtin:"):
        raise DataError(f"{name}: no such built-in corpus", f"there are {BUILTIN} and {BUILTIN_INSTRUCTIONS}")
    path = Path(name)
    if path.is_dir():
        return _find_in_folder(path, name)
    if path.is_file():
        return [Source(name, _kind(path), True, name)]
    if path.exists():
        raise DataError(f"{name}: neither a file nor a folder", "name a file, a folder or a pattern")
    if has_magic(name):
        return _find_by_pattern(name)
    raise DataError(f"{name}: no such file or folder", _close_name(path))


def _find_in_folder(folder: Path, origin: str) -> list[Source]:
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root) / name for name in names if not name.startswith(".")]
    known = [path for path in files if path.suffix.lower() in TEXT_SUFFIXES + ROW_SUFFIXES and path.is_file()]
    if not known:
        raise DataError(f"{folder}: no text in this folder; {SUPPORTED}", "name another folder, or the files")
    known.sort(key=lambda path: path.relative_to(folder).parts)
    return [Source(str(path), _kind(path), False, origin) for path in known]


def _find_by_pattern(pattern: str) -> list[Source]:
    found: list[Source] = []
    for path in sorted((Path(name) for name in glob(pattern, recursive=True)), key=lambda path: path.parts):
        if path.is_file():
            found.append(Source(str(path), _kind(path), False, pattern))
        elif "**" not in pattern:  # which lists the files of every folder that it names
            found += _find_in_folder(path, pattern)
    if not found:
        raise DataError(f"{pattern}: no file matches this pattern", "check the pattern, or name a folder")
    return found


def _kind(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix in _TABLES | _ARCHIVES | _PAGES | _WEIGHTS:
        raise DataError(f"{path}: {SUPPORTED}, not {suffix}", "convert it to .jsonl with one text on each line")
    return "rows" if suffix in ROW_SUFFIXES else "text"


def _close_name(path: Path) -> str:
    """The nearest thing that is there, as a hint."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"there is no folder {path.parent} that can be read"
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else "check the name, or use `builtin`"


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as content:
            while part := content.read(_READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
