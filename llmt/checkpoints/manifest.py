"""directory -> is every byte still what was written?

`MANIFEST.json` is written last and lists each file of its directory with size and SHA-256. A file that it
does not list is none of its business: a run folder also holds logs, and people add notes.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.files import FileRecord
from llmt.checkpoints.reading import is_plain_name, open_inside, read_errors, read_json, shown
from llmt.errors import ModelFileError
from llmt.units import format_size

FORMAT = 1
_CHUNK = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWN_KEYS = ("format", "llmt", "files")


@dataclass(frozen=True)
class Manifest:
    """A read manifest: which llmt wrote it, each file's record, and the writer's own fields."""

    llmt: str
    files: Mapping[str, FileRecord]
    extra: Mapping[str, object] = field(default_factory=dict)


def encode_manifest(files: Mapping[str, FileRecord], extra: Mapping[str, object]) -> bytes:
    """The bytes of a manifest over `files`, with the caller's `extra` fields beside them.

    Raises:
        ValueError: `extra` uses one of the manifest's own keys, or holds what JSON cannot.
    """
    if taken := [key for key in _OWN_KEYS if key in extra]:
        raise ValueError(f"{taken[0]!r} is a key of the manifest itself")
    listed = {name: [files[name].size, files[name].sha256] for name in sorted(files)}
    content = {"format": FORMAT, "llmt": llmt_version(), **extra, "files": listed}
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def llmt_version() -> str:
    """The version of this llmt."""
    try:
        return version("llmt")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of `directory`, or None where there is none. Compares nothing with the files.

    Raises:
        ModelFileError: The manifest cannot be parsed, or its format is newer than this llmt.
    """
    path = directory / layout.MANIFEST
    with read_errors(path):
        if not path.exists():
            return None
    content = read_json(directory, layout.MANIFEST)
    if not {"format", "files"} & content.keys():  # another program's
        return None
    if content.get("format") != FORMAT:
        raise UnknownFormatError(
            f"{path}: format {shown(content.get('format'))}, this llmt reads format {FORMAT}",
            "python -m pip install --upgrade llmt",
        )
    listed = content.get("files")
    if not isinstance(listed, dict):
        raise ModelFileError(f"{path}: lists no files", "delete the directory or copy it again")
    files = {}
    for name, record in listed.items():
        match record:
            case [int(size), str(sha256)] if is_plain_name(name) and size >= 0 and _SHA256.fullmatch(sha256):
                files[name] = FileRecord(size, sha256)
            case _:
                reason = f"the entry {shown(name)} is malformed"
                raise ModelFileError(f"{path}: {reason}", "delete the directory or copy it again")
    extra = {key: value for key, value in content.items() if key not in _OWN_KEYS}
    return Manifest(str(content.get("llmt")), files, extra)


class UnknownFormatError(ModelFileError):
    """A manifest of another format: not damaged, only not readable by this version."""


def manifest_problems(directory: Path, manifest: Manifest, *, contents: bool = True) -> list[str]:
    """Where the files of `directory` differ from their manifest, one line each; empty when nothing differs.

    Args:
        directory: Where the files lie.
        manifest: What they should be.
        contents: Compare SHA-256 too, which reads every byte; otherwise sizes only.
    """
    problems = []
    for name, record in manifest.files.items():
        path = directory / name
        with read_errors(path):
            status = path.lstat() if os.path.lexists(path) else None
        if status is None:
            problems.append(f"{name} is missing")
        elif not stat.S_ISREG(status.st_mode):
            problems.append(f"{name} is not a regular file")
        elif status.st_size != record.size:
            was, should = format_size(status.st_size), format_size(record.size)
            detail = f"{was}, not {should}" if was != should else f"{status.st_size}, not {record.size} bytes"
            problems.append(f"{name} has another size ({detail})")
        elif contents and hash_file(directory, name).sha256 != record.sha256:
            problems.append(f"{name} sha256 differs")
    return problems


def verify_manifest(directory: Path, *, contents: bool = True) -> Manifest:
    """The manifest of `directory`, after every file in it was found to be as listed.

    Raises:
        ModelFileError: No manifest, an unreadable one, or files that differ from it; every difference is
            named.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ModelFileError(f"{directory}: has no {layout.MANIFEST}", "name another checkpoint or run")
    if problems := manifest_problems(directory, manifest, contents=contents):
        raise ModelFileError(f"{directory}: damaged: {'; '.join(problems)}", "name another checkpoint or run")
    return manifest


def hash_file(directory: Path, name: str) -> FileRecord:
    """Size and SHA-256 of one file of `directory`, in constant memory.

    Raises:
        ModelFileError: The file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    with open_inside(directory, name) as file, read_errors(directory / name):
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size, digest.hexdigest())
