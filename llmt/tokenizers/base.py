"""What every tokenizer can do, and what it must."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypedDict

from llmt.errors import DataError, ModelFileError, UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class MergeStep(TypedDict):
    """One learnt join of two pieces; `count` and `score` are None where the trainer keeps none."""

    left: str
    right: str
    piece: str
    count: int | None
    score: float | None


class TokenStream(Protocol):
    """Ids in, text out as soon as it is whole."""

    def step(self, token_id: int) -> str | None:
        """The text that `token_id` completes, or None while a character is still incomplete."""

    def flush(self) -> str:
        """What is still held at the end; an incomplete character is U+FFFD."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Unless asked, encoding adds no special token, and it never reads one out of the text: `<|endoftext|>` in a
    document is eleven or so ordinary characters.

    A class of your own defines the abstract methods; all others work on top of them, and may be replaced by
    faster ones. `tests/unit/tokenizers/test_contract.py` says what is expected of each.
    """

    _chat_template: str | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: ids are 0 to vocab_size - 1."""

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role: `eos_token`, `bos_token`, `pad_token`, `unk_token` and others."""

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`. Lone surrogates count as U+FFFD.

        Args:
            text: Any text.
            add_special_tokens: Put the tokens that begin and end a document around it.
        """

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
    def token_to_id(self, token: str) -> int | None:
        """The id of a piece of the vocabulary, or None where there is none."""

    @abstractmethod
    def train(
        self, texts: Iterable[str], vocab_size: int = 30_000, min_frequency: int = 2, verbose: bool = False
    ) -> None:
        """Learn the vocabulary anew, in place of what was learnt before.

        Args:
            texts: Documents; read once.
            vocab_size: Ids wanted, special tokens included; fewer where the text supports no more.
            min_frequency: Pairs that occur less often are never merged.
            verbose: Log the progress, under the name `llmt.tokenizers`.

        Raises:
            ConfigError: An option that cannot be.
            DataError: No text.
            UsageError: This tokenizer cannot be trained.
        """

    @abstractmethod
    def save_pretrained(self, directory: str | Path) -> None:
        """Write the files that `AutoTokenizer.from_pretrained(directory)` and `from_pretrained` read.

        Raises:
            StorageError: The file system refused.
        """

    @classmethod
    @abstractmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The tokenizer that `save_pretrained` wrote.

        Raises:
            ModelFileError: The directory or the tokenizer is missing, damaged, unsafe or of another kind.
        """

    # What follows works for every subclass.

    def __len__(self) -> int:
        return self.vocab_size

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode_batch(self, batch: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """`decode` of each list of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    @property
    def eos_token_id(self) -> int:
        """Ends a document and separates it from the next.

        Raises:
            ModelFileError: The tokenizer names no such token.
        """
        token_id = self._special_id("eos_token")
        if token_id is None:
            raise ModelFileError(
                "tokenizer: it names no end-of-text token", 'add "eos_token" to its tokenizer_config.json'
            )
        return token_id

    @property
    def bos_token_id(self) -> int | None:
        """Begins a document, where the tokenizer has such a token."""
        return self._special_id("bos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Fills up short sequences, where the tokenizer has such a token."""
        return self._special_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """Stands for what the vocabulary cannot spell, where the tokenizer has such a token."""
        return self._special_id("unk_token")

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that no text spells, with their ids."""
        ids = {token: self.token_to_id(token) for token in self.special_tokens.values()}
        return {token: token_id for token, token_id in ids.items() if token_id is not None}

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that writes conversations, where the tokenizer has one."""
        return self._chat_template

    def keep_chat_template(self, template: str) -> None:
        """Write conversations by this template from now on; a class that can saves it too."""
        self._chat_template = template

    def add_control_tokens(self, tokens: Sequence[str]) -> None:
        """Know more tokens that no text spells, behind those that there are; a token that is known is only marked.

        Raises:
            UsageError: This kind of tokenizer cannot.
        """
        raise UsageError("added_tokens: this tokenizer takes no more tokens", "use one that has a tokenizer.json")

    @property
    def is_lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` is known for every well-formed text."""
        return False

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text that one id stands for, which need not be whole characters.

        Raises:
            MismatchError: An id that this tokenizer does not have.
        """
        return self.tokens([token_id])[0].encode()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it covers, as (start, end) in `text`.

        Raises:
            UsageError: This kind of tokenizer does not know.
        """
        raise UsageError("offsets: this tokenizer does not keep them", "use one that has a tokenizer.json")

    def decode_stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder for ids that arrive one by one."""
        return WholeStream(self, skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256, equal for tokenizers that encode alike: here over class and vocabulary."""
        parts = [type(self).__name__, self.tokens(range(self.vocab_size)), self.special_tokens]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def train_from_dataset(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        text_column: str = "text",
        vocab_size: int = 30_000,
        max_samples: int | None = None,
        min_frequency: int = 2,
        verbose: bool = False,
    ) -> None:
        """Learn the vocabulary from a local file, folder or pattern, or from a data set on the hub.

        Args:
            name: What to read; a file or folder of that name comes first.
            config: Configuration of a hub data set.
            split: Split of a hub data set.
            text_column: Column or field that holds the text.
            vocab_size: As in `train`.
            max_samples: Read at most this many documents.
            min_frequency: As in `train`.
            verbose: As in `train`.

        Raises:
            DataError: No text, or none that can be read.
            HubError: The hub cannot resolve the name now.
        """
        from llmt.text.sources import open_texts

        texts = open_texts(name, config=config, split=split, text_column=text_column, max_samples=max_samples)
        self.train(texts, vocab_size, min_frequency, verbose)

    def get_merge_history(self) -> list[MergeStep]:
        """The joins that were learnt, in order; empty where the kind of tokenizer has none."""
        return []

    def get_tokenization_stats(self) -> dict[str, Any]:
        """Numbers of the vocabulary, lengths in characters as written in it, and how it was trained."""
        special = set(self.special_tokens.values())
        lengths = [len(piece) for piece in self.tokens(range(self.vocab_size)) if piece not in special]
        return {
            "vocab_size": self.vocab_size,
            "special_tokens": len(special),
            "merges": len(self.get_merge_history()),
            "average_token_length": round(sum(lengths) / len(lengths), 3) if lengths else None,
            "longest_token_length": max(lengths, default=None),
        }

    def analyze_word_segmentation(self, words: Iterable[str]) -> dict[str, list[str]]:
        """The pieces of each word, by word."""
        return {word: self.tokens(self.encode(word)) for word in words}

    def calculate_compression_ratio(self, texts: Iterable[str]) -> float:
        """Characters per token, spaces included.

        Raises:
            DataError: Texts without any token.
        """
        listed = list(texts)
        tokens = sum(map(len, self.encode_batch(listed)))
        if tokens == 0:
            raise DataError("texts: there is nothing in them to tokenize", "give some text")
        return sum(map(len, listed)) / tokens

    def _special_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.token_to_id(token)

    def _as_document(self, ids: list[int]) -> list[int]:
        """`ids` between the tokens that begin and end a document; one that does both only ends."""
        begins = self.bos_token_id
        start = [] if begins is None or begins == self.eos_token_id else [begins]
        return [*start, *ids, self.eos_token_id]


class WholeStream:
    """Streaming for any tokenizer: decode all ids so far, give what is new."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._given = 0

    def step(self, token_id: int) -> str | None:
        """The text that `token_id` completes, or None while a character is still incomplete."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, self._skip)
        return None if text.endswith("\ufffd") else self._rest(text) or None

    def flush(self) -> str:
        """What is still held; an incomplete character is U+FFFD."""
        return self._rest(self._tokenizer.decode(self._ids, self._skip))

    def _rest(self, text: str) -> str:
        rest = text[self._given :]
        self._given = len(text)
        return rest


BaseTokenizer = Tokenizer
"""The name under which people's own subclasses know it."""


def special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The special ids that a model directory names; None where the tokenizer has no such token."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
