"""Where the text comes from and how it is cut into batches."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from llmt.config.base import Count, Flag, Number, NumberList, Section, Text, TextList, TextMap
from llmt.config.names import COLUMN_PARTS

EncodingErrors = Literal["strict", "replace"]
Packing = Literal["blocks", "best_fit", "none"]
Truncation = Literal["split", "truncate", "drop", "error"]

BUDGETS = ("max_dropped", "max_truncated", "max_duplicates", "max_unknown", "max_overlap")
"""Settings that bound what the audit of prepared text finds."""


class DataConfig(Section):
    """The corpus, its held-out part, and the sequences that are trained on."""

    sources: TextList = ()
    """Files, folders, glob patterns, `hf:NAME` for a data set of the hub, or `-` for standard input: .txt and .md
    hold one document each; .jsonl, .json, .csv, .parquet and .arrow one in each row; each also as .gz and .zst.
    `builtin` is the documentation inside the running Python, `builtin:instructions` the questions made
    from it. Empty means `builtin`, or `builtin:instructions` for an adapter."""

    mixture: NumberList = ()
    """Weights of the sources, one for each: how often each is drawn from. Empty reads every document once in an
    epoch."""

    format: Literal["auto", "text", "instruction", "conversation", "preference"] = "auto"
    """What a row is: plain text, a prompt with its completion, a conversation, or a prompt with the chosen and the
    rejected of two answers. `auto` tells by its columns."""

    text_column: Text = "text"
    """Column or field of a row that holds plain text."""

    columns: TextMap = Field({})
    """Which columns hold the parts of a row, such as `prompt=question,completion=answer`. Parts: `messages`,
    `system` (of pairs), `prompt`, `completion`, `chosen`, `rejected`, `instruction`, `input`, `output`, `question`,
    `answer`."""

    prompt_template: Text | None = None
    """How a prompt is written, with columns in braces, such as `"Q: {question} A:"`. None takes the usual layout of
    its format."""

    chat_template: Text | None = None
    """File with the Jinja template of conversations. None takes the tokenizer's, or ChatML where it has none."""

    train_on_prompt: Flag = False
    """Learn to predict prompts and the turns of users too, not only completions and the turns of the assistant."""

    split_on: Text | None = None
    """Text that separates the documents of a text file, such as `"\\n\\n"`; `\\n` and `\\t` stand for a new line and a
    tab. None makes each file one document."""

    dataset_config: Text | None = None
    """Configuration of a data set named `hf:NAME`."""

    dataset_split: Text = "train"
    """Split of a data set named `hf:NAME`."""

    dataset_download: Flag = False
    """Download a data set as a whole before it is read, so that it is there without a network afterwards."""

    max_samples: Count | None = Field(None, gt=0)
    """Read at most this many documents of all sources together. None reads all."""

    skip_bad: Count = Field(0, ge=0)
    """Pass over this many rows that cannot be read, and count them; one more stops the run."""

    encoding_errors: EncodingErrors = "strict"
    """What to do with bytes that are not UTF-8: stop and name the offset, or put U+FFFD there."""

    deduplicate: Flag = False
    """Leave out documents whose text was read before, character for character."""

    validation_sources: TextList = ()
    """Held-out text, read like `sources`. A document of it that `sources` holds too is left out of training. Empty
    means that a part of `sources` is held out."""

    validation_split: Number | None = Field(None, ge=0, lt=1)
    """Share of the documents that is held out where `validation_sources` names nothing. None holds out 5 % of them; of
    a source with fewer than 20 documents, where a share means the end of each, the last 10 %. 0 trains on everything
    and validates nothing."""

    block_size: Count = Field(256, gt=1)
    """Length of a training sequence, in tokens."""

    packing: Literal["auto", "blocks", "best_fit", "none"] = "auto"
    """How sequences are filled: `blocks` cuts the row of all documents, `best_fit` puts whole documents together,
    `none` gives each document a sequence of its own. `auto` is `blocks` for text, `best_fit` where there are
    prompts, conversations or pairs. The two documents of a pair stay together."""

    truncation: Truncation = "split"
    """What happens to a document that is longer than a sequence, where packing keeps documents whole: cut it into
    several, keep its beginning, leave it out, or stop. A pair that is too long cannot be cut into several."""

    document_mask: Flag | None = None
    """Attention stays inside each document of a sequence, and positions begin anew with it. None does so where
    documents are packed, not in blocks, which are then read as one text with end-of-text ids in it."""

    streaming: Flag = False
    """Train on text as it is read, in its order, without preparing it; for text that is too much to be kept. Needs a
    tokenizer, and `validation_sources` or `validation_split` 0. A resume goes on where the run was."""

    max_dropped: Number | None = Field(None, ge=0, le=1)
    """Stop where a larger share of the tokens is left out, truncated ones not counted."""

    max_truncated: Number | None = Field(None, ge=0, le=1)
    """Stop where a larger share of the tokens is cut off by `truncation: truncate`."""

    max_duplicates: Number | None = Field(None, ge=0, le=1)
    """Stop where a larger share of the documents repeats an earlier one."""

    max_unknown: Number | None = Field(None, ge=0, le=1)
    """Stop where a larger share of the tokens is the unknown token."""

    max_overlap: Number | None = Field(None, ge=0, le=1)
    """Stop where a larger share of the held-out documents stands in `sources` too."""

    cache_dir: Text | None = None
    """Where token shards are kept. None means the user's cache folder."""

    num_proc: Count | None = Field(None, ge=1)
    """Processes that make token ids of text. None starts one for each core, at most eight, when more than
    16 million characters are to be encoded. The ids are the same for every number."""

    num_workers: Count | None = Field(None, ge=0)
    """Background threads that read batches ahead. None chooses by device."""

    pin_memory: Flag | None = None
    """Put batches into page-locked memory for faster copies to a GPU. None chooses by device."""

    @field_validator("split_on")
    @classmethod
    def _spelled_out(cls, value: str | None) -> str | None:
        """A shell hands over a backslash and a letter."""
        if value == "":
            raise ValueError("split_on is empty, and nothing stands between any two characters")
        return None if value is None else value.replace("\\n", "\n").replace("\\t", "\t")

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        unknown = [part for part in self.columns if part not in COLUMN_PARTS]
        if unknown:
            raise ValueError(f"columns: no part {unknown[0]!r}; there are {', '.join(COLUMN_PARTS)}")
        empty = [part for part, column in self.columns.items() if not column]
        if empty:
            raise ValueError(f"columns: the name of the column of {empty[0]} is empty")
        return self

    @model_validator(mode="after")
    def _formats_fit(self) -> Self:
        if self.format == "text" and (self.columns or self.prompt_template):
            raise ValueError("format text has no parts: leave columns and prompt_template out")
        if self.format == "conversation" and self.prompt_template:
            raise ValueError("format conversation has no prompt_template: name a chat_template")
        if self.format == "preference" and self.streaming:
            raise ValueError("streaming and format preference: a stream is cut into blocks, which would part the pairs")
        return self

    @model_validator(mode="after")
    def _streams_alone(self) -> Self:
        if not self.streaming:
            return self
        if not self.validation_sources and self.validation_split != 0:
            raise ValueError("streaming holds nothing out by itself: name validation_sources, or validation_split 0")
        whole = {
            "mixture": bool(self.mixture),
            "deduplicate": self.deduplicate,
            "max_samples": self.max_samples is not None,
            "skip_bad": self.skip_bad > 0,
            "packing": self.packing in ("best_fit", "none"),
            "truncation": self.truncation != "split",
        }
        budgets = {name: value is not None for name, value in self if name in BUDGETS}
        clash = next((name for name, value in (whole | budgets).items() if value), None)
        if clash is not None:
            raise ValueError(f"streaming and {clash}: a stream is read once, in its order, and cut into blocks")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.mixture and len(self.mixture) != len(self.sources):
            raise ValueError(f"mixture has {len(self.mixture)} weights for {len(self.sources)} sources")
        if self.mixture and (min(self.mixture) < 0 or sum(self.mixture) == 0):
            raise ValueError("mixture: weights are 0 or more, and not all 0")
        return self
