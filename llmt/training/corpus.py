"""configuration -> a tokenizer and the token shards that it makes of the text."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import staged_directory
from llmt.config.data import DataConfig
from llmt.config.run import TrainConfig
from llmt.config.tokenizer import TokenizerConfig
from llmt.data.prepare import PreparedData, prepare_shards
from llmt.data.split import hold_out
from llmt.errors import MismatchError, StorageError
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources, open_documents
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import options_of, train_tokenizer

TOKENIZER_FORMAT = 1

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and of how much (None: not known)."""


@dataclass(frozen=True)
class Corpus:
    """Text as a model reads it.

    Attributes:
        tokenizer: Makes ids of text.
        data: The ids, for training and for validation.
        notes: How the tokenizer came about.
    """

    tokenizer: Tokenizer
    data: PreparedData
    notes: tuple[str, ...]


def prepare_corpus(
    config: TrainConfig, cache: Path, *, tokenizer_directory: Path | None = None, progress: Progress
) -> Corpus:
    """The tokenizer and the shards of a run, from the cache where they are there already.

    Args:
        config: The run.
        cache: Where tokenizers and shards are kept.
        tokenizer_directory: The tokenizer of the model that the run goes on from, before that of the configuration.
        progress: Told about the work.

    Raises:
        DataError: Text that is missing, unreadable or too short.
        ModelFileError: The tokenizer cannot be read.
    """
    existing = str(tokenizer_directory) if tokenizer_directory is not None else config.tokenizer.path
    if existing is not None:
        tokenizer, note = load_tokenizer(existing), f"tokenizer of {existing}"
    else:
        tokenizer, note = _cached_tokenizer(config.tokenizer, config.data, cache / "tokenizers", progress)
    data = prepare_shards(
        config.data,
        tokenizer,
        cache / "shards",
        progress=lambda size, documents: progress(f"tokenizing, {documents} documents", size, None),
    )
    return Corpus(tokenizer, data, (note,))


def training_texts(data: DataConfig) -> Iterator[str]:
    """The texts that are trained on: all but the held-out ones."""
    documents = open_documents(data.sources, Reading(data.text_column, data.encoding_errors))
    if data.validation_sources:
        return (document.text for document in documents)
    return (document.text for document, held_out in hold_out(documents, data.validation_split) if not held_out)


def _cached_tokenizer(
    config: TokenizerConfig, data: DataConfig, cache: Path, progress: Progress
) -> tuple[Tokenizer, str]:
    decides = {
        "format": TOKENIZER_FORMAT,
        "tokenizer": config.model_dump(),
        "text": fingerprint_sources(data.sources),
        "split": None if data.validation_sources else data.validation_split,
        "reading": [data.text_column, data.encoding_errors],
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache / name
    if (directory / layout.TOKENIZER_FILE).is_file():
        return load_tokenizer(directory), f"{config.algo} tokenizer from the cache"
    tokenizer = train_tokenizer(
        config.algo,
        training_texts(data),
        **config.model_dump(include=set(options_of(config.algo))),
        progress=lambda now: progress(f"training a {config.algo} tokenizer: {now.stage}", now.done, now.total),
    )
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with staged_directory(directory, extra=None) as staged:
            tokenizer.save_pretrained(staged.path)
    except StorageError:
        # Another process may have published the same tokenizer meanwhile.
        if not directory.is_dir():
            raise
    return load_tokenizer(directory), f"{config.algo} tokenizer trained on the training text"


def check_fits(tokenizer: Tokenizer, vocab_size: int, what: str) -> None:
    """Every id of the tokenizer exists in the model.

    Raises:
        MismatchError: It does not.
    """
    if tokenizer.vocab_size > vocab_size:
        raise MismatchError(
            f"{what}: the tokenizer has {tokenizer.vocab_size:,} ids, the model {vocab_size:,}",
            "use the tokenizer that the model was trained with",
        )
