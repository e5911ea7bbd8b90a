"""A tokenizer of the Rust `tokenizers` library."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, final

import tokenizers
from tokenizers.decoders import DecodeStream

from llmt.errors import ConfigError, MismatchError, ModelFileError, UsageError
from llmt.tokenizers.base import MergeStep, Tokenizer, well_formed
from llmt.tokenizers.bytelevel import is_byte_level, is_lossless, to_bytes
from llmt.tokenizers.chunks import ChunkEncoder, find_cut
from llmt.tokenizers.files import TRAINING_FILE, TokenizerParts, default_template, read_parts, write_parts
from llmt.tokenizers.progress import Progress
from llmt.tokenizers.trial import rust_refusals

CACHE_SIZE = 10_000


class FastTokenizer(Tokenizer):
    """What every tokenizer with a tokenizer.json shares; its subclasses are final.

    Args:
        cache_size: How many words `encode` remembers with their ids. Training clears them.
    """

    def __init__(self, cache_size: int = CACHE_SIZE) -> None:
        self._parts: TokenizerParts | None = None
        self._cache_size = cache_size
        self._chunks: ChunkEncoder | None = None
        self._frames = False

    @classmethod
    @abstractmethod
    def from_parts(cls, parts: TokenizerParts) -> Self:
        """The tokenizer of these parts.

        Raises:
            ModelFileError: They are those of another kind.
        """

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The tokenizer in a directory."""
        return cls.from_parts(read_parts(Path(directory)))

    def adopt(self, parts: TokenizerParts) -> None:
        """Become the tokenizer of these parts, in place of what was there.

        Raises:
            ConfigError: A special token that the vocabulary lacks.
        """
        backend = parts.backend
        backend.encode_special_tokens = True
        ids = {role: backend.token_to_id(token) for role, token in parts.special.items()}
        if missing := [role for role, token_id in ids.items() if token_id is None]:
            raise ConfigError([f"{role}: {parts.special[role]!r} is not in the vocabulary" for role in missing])
        spec = json.loads(backend.to_str())
        self._parts = parts
        self._ids = ids
        self._vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._lossless = is_lossless(spec)
        self._byte_level = is_byte_level(spec)
        self._prefix: str = spec["model"].get("continuing_subword_prefix") or ""
        self._merges: list[Any] = spec["model"].get("merges") or []
        self._frames = backend.num_special_tokens_to_add(False) > 0
        self._cut = find_cut(spec)
        self._remember()

    @property
    def parts(self) -> TokenizerParts:
        """What it is made of.

        Raises:
            UsageError: It was not trained yet.
        """
        if self._parts is None:
            raise UsageError("tokenizer: it is not trained yet", "call train(texts), or from_pretrained(directory)")
        return self._parts

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's tokenizer."""
        return self.parts.backend

    @property
    def training(self) -> Mapping[str, Any] | None:
        """How llmt trained it, or None for a foreign tokenizer."""
        return self.parts.training

    @property
    def cache_size(self) -> int:
        """How many words `encode` remembers. Setting it forgets them."""
        return self._cache_size

    @cache_size.setter
    def cache_size(self, size: int) -> None:
        """Remember as many from now on."""
        self._cache_size = size
        if self._parts is not None:
            self._remember()

    @property
    def words_remembered(self) -> int:
        """How many words the cache holds now."""
        return 0 if self._parts is None or self._chunks is None else len(self._chunks)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._vocab_size if self._parts is not None else 0

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role."""
        return dict(self.parts.special)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that no text spells, with their ids."""
        added = self.backend.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @property
    def chat_template(self) -> str | None:
        """The template beside the tokenizer, or the default one of `tokenizer_config.json`."""
        return self.parts.chat_template or default_template(self.parts.config.get("chat_template"))

    def keep_chat_template(self, template: str) -> None:
        """Write conversations by this template from now on; it is saved with the tokenizer."""
        config = {key: value for key, value in self.parts.config.items() if key != "chat_template"}
        self._parts = replace(self.parts, chat_template=template, config=config)

    def add_control_tokens(self, tokens: Sequence[str]) -> None:
        """Know more tokens that no text spells, behind those that there are; a token that is known is only marked."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
        self.adopt(replace(self.parts, backend=backend))

    @property
    def is_lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for every well-formed text."""
        return self._parts is not None and self._lossless

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; no special token is read out of it.

        With `add_special_tokens` what the tokenizer.json puts around a text, or, where it says nothing, the
        tokens that begin and end a document.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        clean = [well_formed(text) for text in texts]
        if add_special_tokens and self._frames:
            return self._in_library(clean, add_special_tokens=True)
        if self._chunks is not None:
            batch = self._chunks.encode_batch(clean)
        else:
            batch = self._in_library(clean, add_special_tokens=False)
        return [self._as_document(ids) for ids in batch] if add_special_tokens else batch

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of the vocabulary behind each id."""
        return [self._piece(token_id) for token_id in ids]

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece of the vocabulary, or None where there is none."""
        token_id: int | None = self.backend.token_to_id(token)
        return token_id

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; where the vocabulary is not byte-level, the piece's UTF-8."""
        piece = self._piece(token_id).removeprefix(self._prefix)
        return to_bytes(piece) if self._byte_level else piece.encode()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it covers."""
        backend = self.backend
        with rust_refusals("tokenizer.json"):
            spans: list[tuple[int, int]] = backend.encode(well_formed(text), add_special_tokens=False).offsets
        return spans

    def decode_stream(self, skip_special_tokens: bool = True) -> "FastStream":
        """A decoder for ids that arrive one by one."""
        return FastStream(self.backend, skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 over the canonical tokenizer.json."""
        return spec_fingerprint(self.backend)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, where llmt trained it, training.json."""
        write_parts(Path(directory), self.parts)

    def get_merge_history(self) -> list[MergeStep]:
        """The joins that were learnt, in order, as the training record or else the vocabulary's merges tell.

        Raises:
            ModelFileError: The record is damaged.
        """
        recorded = (self.training or {}).get("merges")
        if recorded is not None:
            return _parse_merges(recorded)
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in self._merges]
        return [MergeStep(left=a, right=b, piece=a + b, count=None, score=None) for a, b in pairs]

    def get_tokenization_stats(self) -> dict[str, Any]:
        """Numbers of the vocabulary, and the training record without its merges."""
        record = {key: value for key, value in (self.training or {}).items() if key != "merges"}
        return record | super().get_tokenization_stats()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": None}  # a cache does not travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._parts is not None:
            self._parts.backend.encode_special_tokens = True  # the library's pickle leaves it out
            self._remember()

    def _in_library(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Encoding by the library, which refuses a text over which a foreign pattern takes too long."""
        backend = self.backend
        with rust_refusals("tokenizer.json"):
            encodings = backend.encode_batch(texts, add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

    def _remember(self) -> None:
        self._chunks = None
        if self._cut is not None and self._cache_size > 0:
            self._chunks = ChunkEncoder(self.backend, self._cut, self._cache_size)

    def _piece(self, token_id: int) -> str:
        piece: str | None = self.backend.id_to_token(token_id) if token_id >= 0 else None
        if piece is None:
            raise MismatchError(f"token id {token_id}: the tokenizer has ids 0 to {self._vocab_size - 1}")
        return piece


class TrainableTokenizer(FastTokenizer):
    """A tokenizer that llmt trains, and whose record says how."""

    algo: str
    """Name of the algorithm, as in `--algo`."""

    model_type: str
    """What tokenizer.json calls it."""

    def __init__(self, options: Mapping[str, Any], cache_size: int = CACHE_SIZE) -> None:
        super().__init__(cache_size)
        self.options = dict(options)

    @classmethod
    def from_parts(cls, parts: TokenizerParts) -> Self:
        """The tokenizer of these parts, with the options that it was trained with."""
        made_by = (parts.training or {}).get("algo")
        if made_by != cls.algo:
            raise ModelFileError(
                f"tokenizer: {cls.__name__} reads {cls.algo!r}, not {made_by!r}", "load_tokenizer(...)"
            )
        model = json.loads(parts.backend.to_str())["model"]["type"]
        if model != cls.model_type:
            raise ModelFileError(f"{TRAINING_FILE}: it is of {made_by!r}, the tokenizer is {model}", "train it again")
        try:
            tokenizer = cls(**(parts.training or {}).get("options", {}))
        except (TypeError, ValueError, KeyError, AttributeError, ConfigError) as error:
            raise ModelFileError(f"{TRAINING_FILE}: its options are damaged: {error}", "train it again") from error
        tokenizer.adopt(parts)
        return tokenizer

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Note how it was trained, besides the algorithm and its options."""
        record = {"algo": self.algo, "options": self.options, **facts}
        self._parts = replace(self.parts, training=record)

    @abstractmethod
    def train(
        self,
        texts: Iterable[str],
        vocab_size: int = 30_000,
        min_frequency: int = 2,
        verbose: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Learn the vocabulary anew; `progress` is told how far it is."""


@final
class PretrainedTokenizer(FastTokenizer):
    """A tokenizer.json from elsewhere."""

    @classmethod
    def from_parts(cls, parts: TokenizerParts) -> Self:
        """The tokenizer of these parts."""
        tokenizer = cls()
        tokenizer.adopt(parts)
        return tokenizer

    def train(
        self, texts: Iterable[str], vocab_size: int = 30_000, min_frequency: int = 2, verbose: bool = False
    ) -> None:
        """Not possible: how its vocabulary was learnt is not known."""
        raise UsageError(
            "tokenizer: it comes from elsewhere, and cannot be trained",
            "train one of llmt's: llmt tokenizer train FILES --algo bpe",
        )


@final
class FastStream:
    """Ids in, text out as soon as it is whole: the library's `DecodeStream`, and what it still holds."""

    def __init__(self, backend: tokenizers.Tokenizer, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._held: list[int] = []

    def step(self, token_id: int) -> str | None:
        """The text that `token_id` completes, or None while a character is still incomplete."""
        text: str | None = self._stream.step(self._backend, token_id)
        if text is None:
            self._held.append(token_id)
        else:
            self._held.clear()
        return text

    def flush(self) -> str:
        """What is still held; an incomplete character is U+FFFD."""
        text: str = self._backend.decode(self._held, skip_special_tokens=self._skip)
        self._held.clear()
        return text


def _parse_merges(recorded: Any) -> list[MergeStep]:
    """The merges of a training record, which anybody may have changed.

    Raises:
        ModelFileError: They are not what llmt writes.
    """
    try:
        steps = [MergeStep(left=a, right=b, piece=p, count=n, score=s) for a, b, p, n, s in recorded]
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{TRAINING_FILE}: its merges are damaged: {error}", "train it again") from error
    for step in steps:
        pieces = (step["left"], step["right"], step["piece"])
        if set(map(type, pieces)) != {str} or type(step["count"]) is not int or type(step["score"]) is not float:
            raise ModelFileError(f"{TRAINING_FILE}: a merge is damaged: {pieces!r}", "train it again")
    return steps


def spec_fingerprint(backend: tokenizers.Tokenizer) -> str:
    """SHA-256 of the tokenizer.json that `backend` would write, whatever its spacing and key order.

    Padding, truncation and post-processing do not count: encoding uses none of them, and other programs add
    their own on loading.
    """
    spec = json.loads(backend.to_str()) | {"padding": None, "truncation": None, "post_processor": None}
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
