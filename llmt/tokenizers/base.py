"""What every tokenizer can do."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class TokenStream(Protocol):
    """Ids in, text out as soon as it is whole."""

    def step(self, token_id: int) -> str | None:
        """The text that `token_id` completes, or None while a character is still incomplete."""

    def flush(self) -> str:
        """What is still held at the end; an incomplete character is U+FFFD."""


class Tokenizer(ABC):
    """Text to token ids and back. Subclasses are final.

    Encoding adds no special token and never reads one out of the text: `<|endoftext|>` in a document is
    eleven or so ordinary characters.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: ids are 0 to vocab_size - 1."""

    @property
    @abstractmethod
    def eos_token_id(self) -> int:
        """Ends a document and separates it from the next.

        Raises:
            ModelFileError: The tokenizer names no such token.
        """

    @property
    @abstractmethod
    def bos_token_id(self) -> int | None:
        """Begins a document, where the tokenizer has such a token."""

    @property
    @abstractmethod
    def pad_token_id(self) -> int | None:
        """Fills up short sequences, where the tokenizer has such a token."""

    @property
    @abstractmethod
    def unk_token_id(self) -> int | None:
        """Stands for what the vocabulary cannot spell, where the tokenizer has such a token."""

    @property
    @abstractmethod
    def is_lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for every well-formed text."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Lone surrogates count as U+FFFD."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel where the library can."""

    @abstractmethod
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`. Ids from `vocab_size` up (a padded model may draw one) have no text."""

    @abstractmethod
    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of the vocabulary behind each id, for people to look at.

        Raises:
            MismatchError: An id that this tokenizer does not have.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text that one id stands for, which need not be whole characters.

        Raises:
            MismatchError: An id that this tokenizer does not have.
        """

    @abstractmethod
    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it covers, as (start, end) in `text`."""

    @abstractmethod
    def decode_stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder for ids that arrive one by one."""

    @abstractmethod
    def save_pretrained(self, directory: str | Path) -> None:
        """Write the files that `AutoTokenizer.from_pretrained(directory)` and `load_tokenizer` read.

        Raises:
            StorageError: The file system refused.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the canonical tokenizer.json: equal for tokenizers that encode alike."""
