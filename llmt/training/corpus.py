"""configuration -> a tokenizer and the token shards that it makes of the text."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import staged_directory
from llmt.config.data import DataConfig
from llmt.config.run import TrainConfig
from llmt.config.tokenizer import TokenizerConfig
from llmt.data.assign import training_texts
from llmt.data.chat import ChatWriter
from llmt.data.open import StreamedData, open_data
from llmt.data.ready import ReadyData
from llmt.data.texts import TextData
from llmt.errors import MismatchError, ModelFileError, StorageError, UsageError
from llmt.text.prompts import CHAT_TEMPLATES
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import options_of, train_tokenizer

TOKENIZER_FORMAT = 3
_DECIDES = {
    "format",
    "text_column",
    "columns",
    "prompt_template",
    "split_on",
    "skip_bad",
    "encoding_errors",
    "deduplicate",
    "validation_split",
}
"""The settings that decide which text a tokenizer is trained on, beside the sources."""

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and of how much (None: not known)."""


@dataclass(frozen=True)
class Corpus:
    """Text as a model reads it.

    Attributes:
        tokenizer: Makes ids of text.
        data: The sequences, for training and for validation.
        notes: How the tokenizer came about.
    """

    tokenizer: Tokenizer
    data: ReadyData | StreamedData | TextData
    notes: tuple[str, ...]

    @property
    def pairs(self) -> bool:
        """The sequences hold pairs of a chosen and a rejected document."""
        return isinstance(self.data, ReadyData) and self.data.pairs


def prepare_corpus(
    config: TrainConfig, cache: Path, *, tokenizer_directory: Path | None = None, progress: Progress
) -> Corpus:
    """The tokenizer and the sequences of a run, from the cache where they are there already.

    Budgets are not looked at; see `DataAudit.check_budgets`.

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
        tokenizer, note = _of_base(existing, brought=tokenizer_directory is not None), f"tokenizer of {existing}"
    elif config.data.streaming and config.tokenizer.algo != "byte":
        raise UsageError(
            "data.streaming: a tokenizer that is trained with the run would read all of the text first",
            "llmt tokenizer train, then --tokenizer ITS_DIRECTORY",
        )
    elif config.data.streaming:
        tokenizer, note = train_tokenizer("byte", ()), "byte tokenizer"
    else:
        tokenizer, note = _cached_tokenizer(config.tokenizer, config.data, cache / "tokenizers", progress)
    if config.tokenizer.added_tokens:
        tokenizer.add_control_tokens(config.tokenizer.added_tokens)
        note += f", with {', '.join(config.tokenizer.added_tokens)}"
    data = open_data(
        config.data,
        tokenizer,
        cache,
        lambda size, documents: progress(f"tokenizing, {documents} documents", size, None),
    )
    _keep_chat_template(tokenizer, config.data, data)
    return Corpus(tokenizer, data, (note,))


def _of_base(directory: str, *, brought: bool) -> Tokenizer:
    """A tokenizer that exists; a base without one cannot get another, whose ids would mean something else."""
    try:
        return load_tokenizer(directory)
    except ModelFileError as error:
        if not brought:
            raise
        raise ModelFileError(error.message, "put the tokenizer that it was trained with into its directory") from None


def _keep_chat_template(tokenizer: Tokenizer, config: DataConfig, data: ReadyData | StreamedData) -> None:
    """Save with the tokenizer how to talk with the model: as the conversations were written, or the rows of one layout.

    A template that the tokenizer brought stays where there were only rows, unless it stands for rows itself.
    """
    text = data.audit.text if isinstance(data, ReadyData) else None
    if config.chat_template is not None or (text is not None and text.conversations):
        tokenizer.keep_chat_template(ChatWriter(tokenizer, config.chat_template).template)
    elif text is not None and text.layout is not None and tokenizer.chat_template in (None, *CHAT_TEMPLATES.values()):
        tokenizer.keep_chat_template(CHAT_TEMPLATES[text.layout])


def _cached_tokenizer(
    config: TokenizerConfig, data: DataConfig, cache: Path, progress: Progress
) -> tuple[Tokenizer, str]:
    reading = Reading.of(data)
    decides = {
        "format": TOKENIZER_FORMAT,
        "tokenizer": config.model_dump(exclude={"added_tokens"}),
        "text": fingerprint_sources(data.sources, reading),
        "held_out": fingerprint_sources(data.validation_sources, reading) if data.validation_sources else None,
        "options": data.model_dump(include=_DECIDES),
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache / name
    if (directory / layout.TOKENIZER_FILE).is_file():
        return load_tokenizer(directory), f"{config.algo} tokenizer from the cache"
    tokenizer = train_tokenizer(
        config.algo,
        training_texts(data, reading),
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
