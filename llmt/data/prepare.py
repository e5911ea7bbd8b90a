"""documents -> shards on the disk, once for each content.

The folder's name is a fingerprint of the text itself, the tokenizer and the options, so that a changed
corpus never meets the ids of an old one. The folder is published whole; a damaged one is made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from llmt.checkpoints.atomic import StagedDirectory, staged_directory
from llmt.checkpoints.files import storage_errors
from llmt.config.data import DataConfig
from llmt.config.names import BUILTIN
from llmt.data.assign import Assignment, Place
from llmt.data.audit import TextAudit
from llmt.data.chat import ChatWriter
from llmt.data.encode import DocumentEncoder, Encoded
from llmt.data.findings import Finding, TextCounter
from llmt.data.shards import SHARD_FORMAT, ShardWriter, open_shards
from llmt.data.store import META, PreparedData, discard, open_prepared, remove_abandoned
from llmt.errors import DataError, StorageError
from llmt.text.documents import Document
from llmt.text.reading import DataFormat, Reading
from llmt.text.sources import fingerprint_sources
from llmt.tokenizers.base import Tokenizer

Progress = Callable[[int, int], None]
"""Called with the bytes of text and the documents done so far."""

_PREPARE_FORMAT = 4
_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1_000_000
_DECIDES = (
    "format",
    "text_column",
    "columns",
    "prompt_template",
    "train_on_prompt",
    "split_on",
    "skip_bad",
    "encoding_errors",
    "deduplicate",
)
"""The settings that decide the ids, beside the sources, the tokenizer and the template."""


def prepare_shards(
    config: DataConfig, tokenizer: Tokenizer, cache_dir: Path, *, progress: Progress | None = None
) -> PreparedData:
    """The shards of a corpus: opened where they are whole in the cache, otherwise made.

    Memory does not grow with the corpus: a few megabytes of text, with several processes two such batches and a
    table of words for each.

    Args:
        config: The corpus and how it is split; no sources mean the built-in corpus.
        tokenizer: Makes the ids.
        cache_dir: Where shards are kept; made when it is not there.
        progress: Told about the work.

    Raises:
        DataError: Text that is missing, unreadable or too little.
        StorageError: The disk refused.
    """
    chat = ChatWriter(tokenizer, config.chat_template)
    fingerprint = fingerprint_data(config, tokenizer, chat)
    directory = cache_dir / fingerprint[:16]
    prepared = open_prepared(directory, fingerprint)
    if prepared is None:
        with storage_errors("making the cache folder", cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache_dir)
        discard(directory)
        prepared = _make(_Work(config, tokenizer, chat, fingerprint, progress), directory)
    _require_something(prepared, config)
    return prepared


def fingerprint_data(config: DataConfig, tokenizer: Tokenizer, chat: ChatWriter) -> str:
    """SHA-256 over all that decides the ids: the text, the tokenizer, the options and the file format.

    Raises:
        DataError: A source is missing.
        StorageError: A file cannot be read.
    """
    reading, held_out = Reading.of(config), config.validation_sources
    decides = {
        "format": [_PREPARE_FORMAT, SHARD_FORMAT],
        "sources": fingerprint_sources(config.sources or (BUILTIN,), reading),
        "validation_sources": fingerprint_sources(held_out, reading) if held_out else None,
        "validation_split": None if held_out else config.validation_split,
        "parts": len(config.mixture),
        "options": config.model_dump(include=set(_DECIDES)),
        "chat": chat.fingerprint(),
        "tokenizer": tokenizer.fingerprint(),
        "special": [tokenizer.special_tokens, tokenizer.control_tokens],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Work:
    """What is prepared, and what is met on the way."""

    config: DataConfig
    tokenizer: Tokenizer
    chat: ChatWriter
    fingerprint: str
    progress: Progress | None
    bad: Finding = field(default_factory=Finding)
    empty: Finding = field(default_factory=Finding)
    formats: dict[str, str] = field(default_factory=dict)

    def reading(self) -> Reading:
        """How the sources are read; what is met is noted."""
        return replace(
            Reading.of(self.config), on_bad=self.pass_over, on_empty=self.empty.add, on_format=self._on_format
        )

    def pass_over(self, error: DataError) -> None:
        """Count a row that cannot be read or written, or raise what is wrong with it."""
        if self.bad.count >= self.config.skip_bad:
            raise error
        self.bad.add(error.message)

    def _on_format(self, source: str, form: DataFormat, columns: tuple[str, ...]) -> None:
        self.formats[source] = f"{form} ({', '.join(columns)})"


class _Whole(NamedTuple):
    """What was read at once, and where it goes."""

    document: Document
    place: Place


_Item = tuple[Document, _Whole, Encoded | DataError]


def _make(work: _Work, directory: Path) -> PreparedData:
    fingerprint = work.fingerprint
    try:
        with staged_directory(directory, extra={"fingerprint": fingerprint}) as staged:
            _fill(staged, work)
            if fingerprint_data(work.config, work.tokenizer, work.chat) != fingerprint:
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


def _fill(staged: StagedDirectory, work: _Work) -> None:
    config, tokenizer = work.config, work.tokenizer
    # Where one token is both, as in GPT-2's family, it ends texts and stands for nothing unknown.
    unknown = None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
    names = ["train"] + [f"train-{number}" for number in range(1, len(config.mixture))]
    with ExitStack() as files:
        counter = files.enter_context(TextCounter(staged.path, tuple(tokenizer.special_tokens.values())))
        assignment = Assignment(config, work.reading(), counter.count)
        writers = {
            place: files.enter_context(
                ShardWriter(
                    staged.path,
                    name,
                    vocab_size=tokenizer.vocab_size,
                    eos_token_id=tokenizer.eos_token_id,
                    unk_token_id=unknown,
                )
            )
            for place, name in [
                *((Place("train", number), name) for number, name in enumerate(names)),
                (Place("validation", 0), "validation"),
            ]
        }
        _write(assignment.documents(), work, writers)
        _require_one_kind(work, counter)
        for writer in writers.values():
            writer.finish()
        duplicates = counter.duplicates()
    meta = {
        "fingerprint": work.fingerprint,
        "train": names,
        "validation": bool(config.validation_sources) or config.validation_split != 0,
        "text": asdict(_audit(staged.path, work, counter, assignment, writers, duplicates)),
        "notes": assignment.notes,
    }
    staged.write_json(META, meta)


def _write(documents: Iterable[tuple[Document, Place]], work: _Work, writers: Mapping[Place, ShardWriter]) -> None:
    done_bytes = done_documents = 0
    config = work.config
    with (
        work.chat.open(all_learnt=config.train_on_prompt) as render,
        DocumentEncoder(
            work.tokenizer, config.num_proc, train_on_prompt=config.train_on_prompt, render=render
        ) as encoder,
    ):
        for batch in encoder.encode(_batches(documents)):
            for _, group in groupby(batch, key=lambda item: id(item[1])):
                done_bytes += _add_whole(list(group), work, writers)
                done_documents += 1
            if work.progress is not None:
                work.progress(done_bytes, done_documents)


def _add_whole(group: Sequence[_Item], work: _Work, writers: Mapping[Place, ShardWriter]) -> int:
    """Write a document, or both of a pair or neither; its bytes."""
    failed = next((encoded for _, _, encoded in group if isinstance(encoded, DataError)), None)
    if failed is not None:
        work.pass_over(failed)
        return 0
    size = 0
    for document, whole, encoded in group:
        assert not isinstance(encoded, DataError)
        _add(writers[whole.place], document, encoded)
        size += encoded.text_bytes
    return size


def _add(writer: ShardWriter, document: Document, encoded: Encoded) -> None:
    writer.add(
        encoded.pieces,
        encoded.text_bytes,
        trained_bytes=encoded.trained_bytes,
        end_learnt=encoded.end_learnt,
        place=document.source,
        more=document.more,
    )


def _batches(documents: Iterable[tuple[Document, Place]]) -> Iterator[list[tuple[Document, _Whole]]]:
    """Some documents at a time; those of a pair one after the other, each with what it came from."""
    batch: list[tuple[Document, _Whole]] = []
    characters = 0
    for document, place in documents:
        whole = _Whole(document, place)
        batch += [(each, whole) for each in document.pair or (document,)]
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _audit(
    directory: Path,
    work: _Work,
    counter: TextCounter,
    assignment: Assignment,
    writers: Mapping[Place, ShardWriter],
    duplicates: Finding,
) -> TextAudit:
    held = open_shards(directory, "validation")
    each = list(writers.values())
    return TextAudit(
        documents=counter.documents,
        supervised=counter.supervised,
        conversations=counter.conversations,
        pairs=counter.pairs,
        characters=counter.characters,
        text_bytes=counter.text_bytes,
        stored_bytes=sum(writer.text_bytes for writer in each),
        tokens=sum(writer.count - 1 for writer in each),
        held_out_documents=held.documents // (2 if counter.pairs else 1),
        held_out_bytes=held.text_bytes,
        shortest_bytes=counter.shortest_bytes,
        longest_bytes=counter.longest_bytes,
        largest_id=max(writer.largest for writer in each),
        end_of_text=sum(writer.documents + 1 for writer in each),
        end_of_text_inside=sum(writer.ends for writer in each),
        unknown_tokens=sum(writer.unknown for writer in each),
        duplicates=duplicates,
        deduplicated=assignment.deduplicated,
        empty=work.empty,
        bad=work.bad,
        replaced=counter.replaced,
        spelled=counter.spelled,
        overlap=assignment.overlap,
        overlap_kept=assignment.overlap_kept,
        overlap_share=assignment.overlap_share,
        formats=work.formats,
        layout=next(iter(counter.layouts)) if len(counter.layouts) == 1 else None,
    )


def _require_one_kind(work: _Work, counter: TextCounter) -> None:
    """All documents are pairs, or none is: nobody could learn from both at once."""
    if counter.pairs in (0, counter.documents):
        return
    pairs = next((name for name, form in work.formats.items() if form.startswith("preference")), "a source")
    raise DataError(
        f"data.sources: {counter.pairs:,} of {counter.documents:,} documents are pairs of answers, such as those of "
        f"{pairs}, and the others are none",
        "give pairs alone, or name what the rows are: --format",
    )


def _require_something(prepared: PreparedData, config: DataConfig) -> None:
    if not any(part.documents for part in prepared.train):
        if prepared.text.pairs:
            raise DataError(
                "data.sources: all pairs answer what held-out ones do, so that none is left to train on",
                "name other --validation-sources, or --set data.validation_split=0",
            )
        raise DataError("data.sources: nothing is left to train on", "give more text, or hold out less")
    for number, part in enumerate(prepared.train):
        if config.mixture and config.mixture[number] and not part.documents:
            raise DataError(
                f"{config.sources[number]}: nothing of it is left to train on", "leave it out of the mixture"
            )
    validation = prepared.validation
    if validation is not None and validation.documents == 0:
        raise DataError(
            "data.validation_split: so little text holds out nothing",
            "give more text, raise data.validation_split, or --set data.validation_split=0",
        )
