"""How text becomes tokens."""

from typing import Literal

from pydantic import Field

from llmt.config.base import Count, Section, Text

Algorithm = Literal["bpe", "wordpiece", "unigram", "byte"]


class TokenizerTraining(Section):
    """How a tokenizer is trained."""

    algo: Algorithm = "bpe"
    """`bpe` and `unigram` by the tokenizers library, `wordpiece` by likelihood, `byte` without training."""

    vocab_size: Count = Field(4096, gt=0)
    """Number of tokens, special tokens included."""

    min_frequency: Count = Field(2, ge=1)
    """A pair that occurs less often is never merged."""

    split: Literal["gpt4", "gpt2"] = "gpt4"
    """How `bpe` cuts text into words before merging."""

    style: Literal["lossless", "bert"] = "lossless"
    """`wordpiece` only: keep every byte, or words alone as BERT does (spacing is lost)."""

    threshold: Literal["anneal", "fixed"] = "anneal"
    """`wordpiece` only: lower the frequency threshold by stages, or hold it at `min_frequency`."""

    max_subword_length: Count = Field(100, ge=1)
    """`wordpiece` only: longest token, in characters."""

    continuation_prefix: Text = Field("##", min_length=1)
    """`wordpiece` only: marks a token that continues a word."""


class TokenizerConfig(TokenizerTraining):
    """Train a tokenizer on the corpus, or take one that exists."""

    path: Text | None = None
    """Directory of an existing tokenizer. None trains a new one on the training documents."""
