"""the cache of token ids: folders that are whole or absent."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import remove, set_aside
from llmt.checkpoints.files import storage_errors
from llmt.checkpoints.manifest import manifest_problems, read_manifest
from llmt.checkpoints.reading import read_json
from llmt.data.audit import TextAudit
from llmt.data.shards import ShardSet, open_shards
from llmt.errors import ModelFileError

META = "meta.json"
_HASH_UP_TO = 256_000_000
_ABANDONED_AFTER = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PreparedData:
    """A corpus as ids.

    Attributes:
        train: The ids to train on, of each source where they are mixed by weight, otherwise of all in one.
        validation: The held-out ids; None when nothing is held out.
        text: What was read, in numbers.
        notes: What was done, one sentence each.
        fingerprint: SHA-256 of content, tokenizer and options.
        directory: Where the shards lie.
        reused: They had been there already.
    """

    train: tuple[ShardSet, ...]
    validation: ShardSet | None
    text: TextAudit
    notes: tuple[str, ...]
    fingerprint: str
    directory: Path
    reused: bool


def open_prepared(directory: Path, fingerprint: str) -> PreparedData | None:
    """What lies in the cache under this fingerprint, or None where it is damaged or absent.

    The sizes of all files are compared with the manifest, and up to 256 MB their content too.
    """
    try:
        manifest = read_manifest(directory)
        if manifest is None:
            return None
        small = sum(record.size for record in manifest.files.values()) <= _HASH_UP_TO
        if manifest_problems(directory, manifest, contents=small):
            return None
        meta: dict[str, Any] = read_json(directory, META)
        if meta["fingerprint"] != fingerprint:
            return None
        return PreparedData(
            train=tuple(open_shards(directory, name) for name in meta["train"]),
            validation=open_shards(directory, "validation") if meta["validation"] else None,
            text=TextAudit.parse(meta["text"]),
            notes=tuple(meta["notes"]),
            fingerprint=fingerprint,
            directory=directory,
            reused=True,
        )
    except (ModelFileError, KeyError, TypeError):
        return None


def discard(directory: Path) -> None:
    """Take a damaged folder out of the way; another process may be doing the same.

    Raises:
        StorageError: The disk refused.
    """
    with storage_errors("removing damaged shards", directory), suppress(FileNotFoundError):
        remove(set_aside(directory, layout.DELETED_PREFIX))


def remove_abandoned(cache_dir: Path) -> None:
    """Remove what a killed process left behind a day ago or longer; who still writes has fresh files."""
    for folder in cache_dir.iterdir():
        if folder.name.startswith((layout.TEMPORARY_PREFIX, layout.DELETED_PREFIX)):
            with suppress(FileNotFoundError):  # published or removed meanwhile
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - newest > _ABANDONED_AFTER:
                    shutil.rmtree(folder, ignore_errors=True)
