"""configuration and tokenizer -> the data of a run: prepared, or streamed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmt.config.data import DataConfig
from llmt.data.chat import ChatWriter
from llmt.data.prepare import Progress, prepare_shards
from llmt.data.ready import ReadyData, ready_data
from llmt.data.sequences import Sequences
from llmt.data.stream import StreamLoader
from llmt.errors import UsageError
from llmt.text.reading import Reading
from llmt.text.sources import list_sources
from llmt.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class StreamedData:
    """Sources that are read while a model is trained.

    Attributes:
        config: The sources.
        tokenizer: Makes the ids.
        held_out: What is validated on, prepared; None when nothing is.
        fingerprint: SHA-256 of the names and sizes of what is streamed, and of the content of what is held out.
    """

    config: DataConfig
    tokenizer: Tokenizer
    held_out: ReadyData | None
    fingerprint: str

    samples = None
    """How long a stream is, is not known."""

    @property
    def validation(self) -> Sequences | None:
        """The held-out sequences."""
        return None if self.held_out is None else self.held_out.train.parts[0]

    @property
    def tokens_per_sample(self) -> float:
        """Ids of a sample; fewer are learnt where there are prompts."""
        return self.config.block_size

    @property
    def masks(self) -> bool:
        """Attention stays inside each document."""
        return self.config.document_mask is True

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing, one sentence each."""
        held_out = self.config.validation_sources
        return (
            "text is read in its order, without an audit; a resume goes on where the run was",
            f"validated on {', '.join(held_out)}" if held_out else "nothing is held out, so nothing is validated",
        )

    def describe(self) -> str:
        """What is trained on, in a phrase."""
        return f"streamed from {', '.join(self.config.sources)}"

    def loader(
        self, batch_size: int, seed: int, num_workers: int, pin_memory: bool, rank: int = 0, world_size: int = 1
    ) -> StreamLoader:
        """Batches of the sources in their order; the seed decides nothing.

        Raises:
            UsageError: Several processes would have to share the stream.
        """
        del seed, rank
        if world_size > 1:
            raise UsageError("data.streaming: several processes cannot share a stream", "--no-streaming")
        return StreamLoader(self.config, self.tokenizer, batch_size, num_workers, pin_memory)

    def audit_values(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        held_out = None if self.held_out is None else self.held_out.audit.values()
        return {"streamed": list(self.config.sources), "held_out": held_out, "notes": list(self.notes)}


def open_data(
    config: DataConfig, tokenizer: Tokenizer, cache: Path, progress: Progress | None = None
) -> ReadyData | StreamedData:
    """The data of a run, from the cache where it was prepared before.

    Args:
        config: The sources, and how they are read, split and divided.
        tokenizer: Makes the ids.
        cache: Where shards and plans are kept.
        progress: Told about the work.

    Raises:
        DataError: Text that is missing, unreadable, or too little.
        StorageError: The disk refused.
    """
    if not config.streaming:
        prepared = prepare_shards(config, tokenizer, cache / "shards", progress=progress)
        return ready_data(config, prepared, cache / "packed")
    digest = hashlib.sha256(list_sources(config.sources, Reading.of(config)).encode())
    digest.update(ChatWriter(tokenizer, config.chat_template).fingerprint().encode())
    held_out = None
    if config.validation_sources:
        alone = {"sources": config.validation_sources, "validation_sources": (), "validation_split": 0.0}
        whole = config.model_copy(update={**alone, "streaming": False, "packing": "blocks"})
        prepared = prepare_shards(whole, tokenizer, cache / "shards", progress=progress)
        held_out = ready_data(whole, prepared, cache / "packed")
        digest.update(held_out.fingerprint.encode())
    return StreamedData(config, tokenizer, held_out, digest.hexdigest())
