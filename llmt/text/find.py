"""names -> the files, streams and data sets behind them, without reading any."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Literal, NoReturn

from llmt.config.names import BUILTIN, BUILTIN_INSTRUCTIONS
from llmt.errors import DataError
from llmt.text.compressed import PACKED_SUFFIXES, suffixes, unreadable

STDIN = "-"
PREFIX = "hf:"
TEXT_SUFFIXES = (".txt", ".md", ".text")
FIELD_SUFFIXES = (".jsonl", ".ndjson", ".json")
COLUMN_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".feather")
ROW_SUFFIXES = FIELD_SUFFIXES + COLUMN_SUFFIXES
SUPPORTED = "this version reads .txt, .md, .jsonl, .json, .csv, .tsv, .parquet and .arrow"
_TABLES = {".xlsx", ".xls", ".ods", ".sqlite", ".db", ".orc", ".avro"}
_ARCHIVES = {".bz2", ".xz", ".zip", ".tar", ".tgz", ".tzst", ".7z", ".rar", *PACKED_SUFFIXES}
_PAGES = {".pdf", ".doc", ".docx", ".odt", ".epub", ".png", ".jpg", ".jpeg"}
_WEIGHTS = {".npy", ".npz", ".bin", ".pt", ".pth", ".pkl", ".safetensors", ".gguf"}

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_HUB_NAME_CHARACTERS = 200
_SAVED = ({"state.json", "dataset_info.json"}, {"dataset_dict.json"})  # what stands beside the rows, or their folders

_PART = re.compile(r"(train|test|dev|eval|valid|validation)(?![a-z])", re.IGNORECASE)

Kind = Literal["builtin", "text", "rows", "stdin", "data set"]


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read.

    Attributes:
        name: The built-in corpus' name, the path of a file, `-`, or what is behind `hf:`.
        kind: How it is read.
        named: The user named this very thing, so that it must hold text.
        origin: The argument that it came from.
    """

    name: str
    kind: Kind
    named: bool
    origin: str


def find_sources(sources: Sequence[str]) -> list[Source]:
    """What is behind the names, sorted within each folder and pattern; reads none of it.

    What exists as a file or folder is that, whatever its name looks like.

    Raises:
        DataError: A name that stands for nothing that can be read.
        StorageError: A folder that may not be searched.
    """
    return list(chain.from_iterable(find_each(sources)))


def find_each(sources: Sequence[str]) -> list[list[Source]]:
    """As `find_sources`, with what is behind each name for itself.

    Raises:
        DataError: A name that stands for nothing that can be read.
        StorageError: A folder that may not be searched.
    """
    if not sources:
        raise DataError("data.sources: no text is named", "--set data.sources=builtin")
    found: list[list[Source]] = []
    for name in sources:
        try:
            found.append(_find(name))
        except OSError as error:
            raise unreadable(Path(error.filename or name), error) from error
    return found


def is_hub_name(name: str) -> bool:
    """Whether the hub could have a data set of this name."""
    return len(name) <= _HUB_NAME_CHARACTERS and _HUB_NAME.fullmatch(name) is not None


def is_saved_data_set(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return any(all((folder / name).is_file() for name in names) for names in _SAVED)


def could_be_on_the_hub(name: str) -> bool:
    """Whether a name stands for nothing on this machine and reads like that of a data set."""
    reads_so = is_hub_name(name) and suffixes(name)[0] not in TEXT_SUFFIXES + ROW_SUFFIXES
    return reads_so and name != BUILTIN and not Path(name).exists()


def _find(name: str) -> list[Source]:
    if name in (BUILTIN, BUILTIN_INSTRUCTIONS):
        return [Source(name, "builtin", True, name)]
    if name.startswith("builtin:"):
        raise DataError(f"{name}: no such built-in corpus", f"there are {BUILTIN} and {BUILTIN_INSTRUCTIONS}")
    if name == STDIN:
        return [_find_stdin()]
    if not name:
        raise DataError("data.sources: one of the names is empty", "name a file, a folder or a pattern")
    path = Path(name)
    if path.is_dir():
        return _find_in_folder(path, name)
    if path.is_file():
        return [Source(name, _kind(path), True, name)]
    if path.exists():
        raise DataError(f"{name}: neither a file nor a folder", "name a file, a folder or a pattern")
    if name.startswith(PREFIX):
        return [_find_data_set(name)]
    if has_magic(name):
        return _find_by_pattern(name)
    raise DataError(f"{name}: no such file or folder", _close_name(name))


def _find_stdin() -> Source:
    if sys.stdin is None or sys.stdin.closed:
        raise DataError(f"{STDIN}: there is no standard input", "name a file")
    if sys.stdin.isatty():
        raise DataError(
            f"{STDIN}: standard input is a terminal, where no text comes from by itself",
            f"send it: cat FILE | llmt ... {STDIN}",
        )
    return Source(STDIN, "stdin", True, STDIN)


def _find_data_set(origin: str) -> Source:
    name = origin.removeprefix(PREFIX)
    if Path(name).is_file():
        raise DataError(f"{origin}: a data set is a name or a folder, and this is a file", "name its folder")
    if not name or (not Path(name).is_dir() and not is_hub_name(name)):
        raise DataError(
            f"{origin}: neither a folder nor a name that the hub could have",
            "write hf:NAME, hf:OWNER/NAME or hf:./FOLDER",
        )
    return Source(name, "data set", True, origin)


def _find_in_folder(folder: Path, origin: str) -> list[Source]:
    if is_saved_data_set(folder):
        return [Source(str(folder), "data set", True, origin)]
    files: list[str] = []  # a million names are less than a million paths
    is_other = False
    seen = {os.path.realpath(folder)}  # a link may lead to a folder above it
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and _is_new(os.path.join(root, name), seen)]
        for name in names:
            is_known = suffixes(name)[0] in TEXT_SUFFIXES + ROW_SUFFIXES and not name.startswith(".")
            if is_known and os.path.isfile(path := os.path.join(root, name)):
                files.append(path)
            is_other = is_other or suffixes(name)[0] in _TABLES
    if not files:
        hint = "save its tables as .csv or .parquet" if is_other else "name another folder, or the files"
        raise DataError(f"{folder}: no text in this folder; {SUPPORTED}, also as .gz and .zst", hint)
    files.sort(key=lambda path: path.replace(os.sep, "\0"))  # folder by folder
    _require_one_part(folder, files)
    return [Source(path, _kind(path), False, origin) for path in files]


def _is_new(folder: str, seen: set[str]) -> bool:
    """Whether a folder was not met yet, by whatever name; notes it."""
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    return True


def _require_one_part(folder: Path, files: Sequence[str]) -> None:
    """Refuse to train on the text that a data set keeps apart for tests, only because it is in the same folder."""
    parts: dict[str, str] = {}
    for path in files:
        if match := _PART.match(os.path.basename(path)):
            parts.setdefault("train" if match[1].lower() == "train" else "test", path)
    if len(parts) == 2:
        raise DataError(
            f"{folder}: {parts['train']} and {parts['test']} are parts that a data set keeps apart",
            f"name the files, or hf:{folder} for one part of a data set",
        )


def _refuse(error: OSError) -> NoReturn:
    """A folder inside that may not be searched: passing over it would lose text without a word."""
    raise error


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


def _kind(path: str | Path) -> Kind:
    suffix, packing = suffixes(path)
    if suffix in PACKED_SUFFIXES:
        raise DataError(f"{path}: packed twice, {suffix} inside {packing}", "unpack it once")
    if suffix in _TABLES | _ARCHIVES | _PAGES | _WEIGHTS:
        hint = "convert it to .txt or .jsonl"
        if suffix in _TABLES:
            hint = "save its tables as .csv or .parquet"
        if suffix in _ARCHIVES:
            hint = "unpack it and name the folder, or pack each text as .gz or .zst"
        raise DataError(f"{path}: {SUPPORTED}, not {suffix}{packing}", hint)
    return "rows" if suffix in ROW_SUFFIXES else "text"


def _close_name(name: str) -> str:
    """The nearest thing that is there, as a hint."""
    path = Path(name)
    hub = f", or {PREFIX}{name} for a data set of the hub" if could_be_on_the_hub(name) else ""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"there is no folder {path.parent} that can be read{hub}"
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else f"check the name, or use `builtin`{hub}"
