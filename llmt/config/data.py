"""Where the text comes from and how it is cut into batches."""

from typing import Literal

from pydantic import Field

from llmt.config.base import Count, Flag, Number, Section, Text, TextList

EncodingErrors = Literal["strict", "replace"]

BUILTIN = "builtin"
BUILTIN_INSTRUCTIONS = "builtin:instructions"


class DataConfig(Section):
    """The corpus, its held-out part, and the blocks that are trained on."""

    sources: TextList = ()
    """Files, folders or glob patterns: .txt and .md hold one document each, .jsonl one each line.
    `builtin` is the documentation inside the running Python, `builtin:instructions` the questions made
    from it. Empty means `builtin`, or `builtin:instructions` for an adapter."""

    text_column: Text = "text"
    """Field of a .jsonl row that holds the text."""

    encoding_errors: EncodingErrors = "strict"
    """What to do with bytes that are not UTF-8: stop and name the offset, or put U+FFFD there."""

    validation_sources: TextList = ()
    """Held-out text, read like `sources`. Empty means that a part of `sources` is held out."""

    validation_split: Number = Field(0.05, ge=0, lt=1)
    """Share of the documents that is held out. With fewer than 20 documents, the share of the text at the
    end of each. 0 trains on everything and validates nothing."""

    block_size: Count = Field(256, gt=1)
    """Length of a training sequence, in tokens."""

    document_mask: Flag = False
    """Attention stays inside each document of a block, and positions begin anew with it. Otherwise a block is read as
    one text, with end-of-text ids in it."""

    cache_dir: Text | None = None
    """Where token shards are kept. None means the user's cache folder."""

    num_proc: Count | None = Field(None, ge=1)
    """Processes that make token ids of text. None starts one for each core, at most eight, when more than
    16 million characters are to be encoded. The ids are the same for every number."""

    num_workers: Count | None = Field(None, ge=0)
    """Background threads that read batches ahead. None chooses by device."""

    pin_memory: Flag | None = None
    """Put batches into page-locked memory for faster copies to a GPU. None chooses by device."""
