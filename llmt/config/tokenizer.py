"""How text becomes tokens."""

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from llmt.config.base import Count, Section, Text, TextLines

Algorithm = Literal["bpe", "wordpiece", "unigram", "byte"]


class TokenizerTraining(Section):
    """How a tokenizer is trained."""

    algo: Algorithm = "bpe"
    """`bpe` and `unigram` by the tokenizers library, `wordpiece` by likelihood, `byte` without training."""

    vocab_size: Count = Field(4096, gt=0, le=1_000_000)
    """Number of tokens, special tokens included."""

    min_frequency: Count = Field(2, ge=1)
    """A pair that occurs less often is never merged."""

    split: Literal["gpt4", "gpt2"] = "gpt4"
    """How `bpe` cuts text into words before merging."""

    style: Literal["lossless", "bert"] = "lossless"
    """`wordpiece` only: keep every byte, or words alone as BERT does (spacing is lost)."""

    threshold: Literal["anneal", "fixed"] = "anneal"
    """`wordpiece` only: lower the frequency threshold by stages, or hold it at `min_frequency`."""

    score: Literal["likelihood", "gain"] = "likelihood"
    """`wordpiece` only: log P(AB) - log P(A) - log P(B), or what the whole text's likelihood gains by the merge."""

    engine: Literal["auto", "python", "compiled"] = "auto"
    """`wordpiece` only: what merges; `compiled` needs numba. The result is the same."""

    max_subword_length: Count = Field(100, ge=1, le=25_000)
    """`wordpiece` only: longest token, in characters."""

    continuation_prefix: Text = Field("##", min_length=2)
    """`wordpiece` only: marks a token that continues a word; two or more ASCII signs."""

    limit_alphabet: Count | None = Field(None, gt=0)
    """`wordpiece` in style `bert` only: keep this many characters, the most frequent. None keeps all."""


class TokenizerConfig(TokenizerTraining):
    """Train a tokenizer on the corpus, or take one that exists."""

    path: Text | None = None
    """Directory, or name on the hub, of an existing tokenizer; an algorithm's name trains a new one by it."""

    added_tokens: TextLines = ()
    """New special tokens, such as `<|im_start|>`: the vocabulary grows by them, also that of a base, and their
    embeddings are trained, also beside an adapter."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_an_algorithm(cls, data: Any) -> Any:
        """`--tokenizer wordpiece` is short for `--algo wordpiece`; a directory of that name is `./wordpiece`."""
        if isinstance(data, dict) and data.get("path") in get_args(Algorithm):
            return {**data, "algo": data["path"], "path": None}
        return data

    @field_validator("added_tokens")
    @classmethod
    def _are_tokens(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(token.strip() for token in value) or len(set(value)) < len(value):
            raise ValueError("each is a text of its own, and none is empty")
        return value
