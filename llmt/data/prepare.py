"""documents -> shards on the disk, once for each content.

The folder's name is a fingerprint of the text itself, the tokenizer and the options, so that a changed
corpus never meets the ids of an old one. The folder is published whole; a damaged one is made again.
"""

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, remove, set_aside, staged_directory
from llmt.checkpoints.files import storage_errors
from llmt.checkpoints.manifest import manifest_problems, read_manifest
from llmt.checkpoints.reading import read_json
from llmt.config.data import BUILTIN, DataConfig
from llmt.data.audit import DataAudit, TextCounter, audit
from llmt.data.shards import SHARD_FORMAT, ShardSet, ShardWriter, open_shards
from llmt.data.split import describe_split, hold_out
from llmt.errors import DataError, ModelFileError, StorageError
from llmt.text.documents import Document
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources, open_documents
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bulk import BulkEncoder

Progress = Callable[[int, int], None]
"""Called with the bytes of text and the documents done so far."""

_PREPARE_FORMAT = 1
_META = "meta.json"
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1_000_000
_HASH_UP_TO = 256_000_000
_ABANDONED_AFTER = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PreparedData:
    """A corpus that is ready to be trained on.

    Attributes:
        train: The ids to train on.
        validation: The held-out ids; None when nothing is held out.
        audit: What was read, in numbers.
        notes: What was done and what is worth knowing, one sentence each.
        fingerprint: SHA-256 of content, tokenizer and options.
        directory: Where the shards lie.
        reused: They had been there already.
    """

    train: ShardSet
    validation: ShardSet | None
    audit: DataAudit
    notes: tuple[str, ...]
    fingerprint: str
    directory: Path
    reused: bool


def prepare_shards(
    config: DataConfig, tokenizer: Tokenizer, cache_dir: Path, *, progress: Progress | None = None
) -> PreparedData:
    """The shards of a corpus: opened where they are whole in the cache, otherwise made.

    Memory: about a megabyte of text, or the longest document where that is more; with several processes, two
    such batches and a table of words for each.

    Args:
        config: The corpus and how it is split; no sources mean the built-in corpus.
        tokenizer: Makes the ids.
        cache_dir: Where shards are kept; made when it is not there.
        progress: Told about the work.

    Raises:
        DataError: Text that is missing, unreadable or too short.
        StorageError: The disk refused.
    """
    fingerprint = fingerprint_data(config, tokenizer)
    directory = cache_dir / fingerprint[:16]
    prepared = open_prepared(directory, fingerprint)
    if prepared is None:
        with storage_errors("making the cache folder", cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache_dir)
        _discard(directory)
        prepared = _make(config, tokenizer, directory, fingerprint, progress)
    _require_enough(prepared, config)
    return prepared


def fingerprint_data(config: DataConfig, tokenizer: Tokenizer) -> str:
    """SHA-256 over all that decides the ids: the text, the tokenizer, the options and the file format.

    Raises:
        DataError: A source is missing.
        StorageError: A file cannot be read.
    """
    held_out = config.validation_sources
    decides = {
        "format": [_PREPARE_FORMAT, SHARD_FORMAT],
        "sources": fingerprint_sources(config.sources or (BUILTIN,)),
        "validation_sources": fingerprint_sources(held_out) if held_out else None,
        "validation_split": None if held_out else config.validation_split,
        "text_column": config.text_column,
        "encoding_errors": config.encoding_errors,
        "tokenizer": tokenizer.fingerprint(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


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
        meta: dict[str, Any] = read_json(directory, _META)
        if meta["fingerprint"] != fingerprint:
            return None
        return PreparedData(
            train=open_shards(directory, "train"),
            validation=open_shards(directory, "validation") if meta["validation"] else None,
            audit=DataAudit(**meta["audit"]),
            notes=tuple(meta["notes"]),
            fingerprint=fingerprint,
            directory=directory,
            reused=True,
        )
    except (ModelFileError, KeyError, TypeError):
        return None


def _make(
    config: DataConfig, tokenizer: Tokenizer, directory: Path, fingerprint: str, progress: Progress | None
) -> PreparedData:
    try:
        with staged_directory(directory, extra={"fingerprint": fingerprint}) as staged:
            _fill(staged, config, tokenizer, fingerprint, progress)
            if fingerprint_data(config, tokenizer) != fingerprint:
                raise DataError("data.sources: a file changed while it was read", "start again when it is complete")
    except StorageError:
        # Another process may have published the same shards meanwhile; theirs are as good.
        theirs = open_prepared(directory, fingerprint)
        if theirs is None:
            raise
        return theirs
    made = open_prepared(directory, fingerprint)
    if made is None:
        raise StorageError(f"{directory}: the shards are not what was written", "check the disk")
    return replace(made, reused=False)


def _fill(
    staged: StagedDirectory,
    config: DataConfig,
    tokenizer: Tokenizer,
    fingerprint: str,
    progress: Progress | None,
) -> None:
    read, held_out = TextCounter(), TextCounter()
    parts, sentence = _split_documents(config, read, held_out)
    ids = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_token_id}
    with ExitStack() as files:
        train = files.enter_context(ShardWriter(staged.path, "train", **ids))
        validation = files.enter_context(ShardWriter(staged.path, "validation", **ids))
        _encode(parts, tokenizer, {False: train, True: validation}, config.num_proc, progress)
        train.finish()
        validation.finish()
    held = open_shards(staged.path, "validation")
    numbers = audit(
        read,
        held_out,
        tokens=open_shards(staged.path, "train").targets + held.targets,
        held_out_bytes=held.text_bytes,
    )
    staged.write_json(
        _META,
        {
            "fingerprint": fingerprint,
            "validation": bool(config.validation_sources or config.validation_split),
            "audit": asdict(numbers),
            "notes": [sentence or describe_split(config.validation_split, read.documents), *numbers.notes()],
        },
    )


def _split_documents(
    config: DataConfig, read: TextCounter, held_out: TextCounter
) -> tuple[Iterator[tuple[Document, bool]], str]:
    """Each document with whether it is held out, and a sentence about it where that is known beforehand."""
    reading = Reading(config.text_column, config.encoding_errors)
    sources = config.sources or (BUILTIN,)
    documents = read.watch(open_documents(sources, reading))
    if not config.validation_sources:
        return hold_out(documents, config.validation_split), ""
    others = open_documents(config.validation_sources, reading)
    parts = chain(
        ((document, False) for document in documents),
        ((document, True) for document in held_out.watch(others)),
    )
    return parts, f"validated on {', '.join(config.validation_sources)}"


def _encode(
    parts: Iterable[tuple[Document, bool]],
    tokenizer: Tokenizer,
    writers: Mapping[bool, ShardWriter],
    num_proc: int | None,
    progress: Progress | None,
) -> None:
    done_bytes = done_documents = 0
    waiting: deque[list[tuple[Document, bool]]] = deque()

    def texts() -> Iterator[list[str]]:
        for batch in _batches(parts):
            waiting.append(batch)
            yield [document.text for document, _ in batch]

    with BulkEncoder(tokenizer, num_proc) as bulk:
        for encoded in bulk.encode(texts()):
            batch = waiting.popleft()
            for (document, is_held_out), ids in zip(batch, encoded, strict=True):
                size = len(document.text.encode())
                writers[is_held_out].add(ids, size)
                done_bytes += size
            done_documents += len(batch)
            if progress is not None:
                progress(done_bytes, done_documents)


def _batches(parts: Iterable[tuple[Document, bool]]) -> Iterator[list[tuple[Document, bool]]]:
    batch: list[tuple[Document, bool]] = []
    characters = 0
    for part in parts:
        batch.append(part)
        characters += len(part[0].text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _require_enough(prepared: PreparedData, config: DataConfig) -> None:
    tokens, needed = len(prepared.train.tokens), config.block_size + 1
    if tokens < needed:
        raise DataError(
            f"data.sources: {tokens} tokens to train on, a block of {config.block_size} needs {needed}",
            f"give more text, or --set data.block_size={max(tokens - 1, 2)}",
        )
    validation = prepared.validation
    if validation is not None and validation.documents == 0:
        raise DataError(
            f"data.validation_split: {config.validation_split:.3g} of the text holds out nothing",
            "give more text, raise data.validation_split, or --set data.validation_split=0",
        )


def _discard(directory: Path) -> None:
    """Take a damaged folder out of the way; another process may be doing the same."""
    with storage_errors("removing damaged shards", directory), suppress(FileNotFoundError):
        remove(set_aside(directory, layout.DELETED_PREFIX))


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove what a killed process left behind a day ago or longer; who still writes has fresh files."""
    for folder in cache_dir.iterdir():
        if folder.name.startswith((layout.TEMPORARY_PREFIX, layout.DELETED_PREFIX)):
            with suppress(FileNotFoundError):  # published or removed meanwhile
                newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - newest > _ABANDONED_AFTER:
                    shutil.rmtree(folder, ignore_errors=True)
