"""A tokenizer of the Rust `tokenizers` library."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import tokenizers
from tokenizers.decoders import DecodeStream

from llmt.errors import ConfigError, MismatchError, ModelFileError
from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.bytelevel import is_byte_level, is_lossless, to_bytes

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TRAINING_FILE = "tokenizer_training.json"
TEMPLATE_FILE = "chat_template.jinja"


@final
class FastTokenizer(Tokenizer):
    """Every kind that llmt trains, and every foreign tokenizer.json.

    Args:
        backend: The library's tokenizer. It must add nothing on its own: no padding, no truncation.
        special: Tokens by role: `eos_token`, `bos_token`, `pad_token`, `unk_token`; each must be in the
            vocabulary.
        training: How it was trained, written to `tokenizer_training.json`. None for a foreign tokenizer.
        config: Further keys of `tokenizer_config.json` to keep.
        chat_template: Text of `chat_template.jinja` to keep.

    Raises:
        ConfigError: A special token that the vocabulary lacks.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str],
        training: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        backend.encode_special_tokens = True
        self.backend = backend
        self.special = dict(special)
        self.training = dict(training) if training is not None else None
        self.config = dict(config or {})
        self.chat_template = chat_template
        self._ids = {role: backend.token_to_id(token) for role, token in special.items()}
        missing = [role for role, token_id in self._ids.items() if token_id is None]
        if missing:
            raise ConfigError([f"{role}: {special[role]!r} is not in the vocabulary" for role in missing])
        spec = json.loads(backend.to_str())
        self._vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._lossless = is_lossless(spec)
        self._byte_level = is_byte_level(spec)
        self._prefix: str = spec["model"].get("continuing_subword_prefix") or ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.backend.encode_special_tokens = True  # the library's pickle leaves it out

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._vocab_size

    @property
    def eos_token_id(self) -> int:
        """Ends a document and separates it from the next."""
        token_id = self._ids.get("eos_token")
        if token_id is None:
            raise ModelFileError("tokenizer: it names no end-of-text token", f'add "eos_token" to its {CONFIG_FILE}')
        return token_id

    @property
    def bos_token_id(self) -> int | None:
        """Begins a document."""
        return self._ids.get("bos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Fills up short sequences."""
        return self._ids.get("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """Stands for what the vocabulary cannot spell."""
        return self._ids.get("unk_token")

    @property
    def is_lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for every well-formed text."""
        return self._lossless

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added and no special token is read out of it."""
        ids: list[int] = self.backend.encode(well_formed(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on as many threads as the library finds."""
        clean = [well_formed(text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch(clean, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of the vocabulary behind each id."""
        return [self._piece(token_id) for token_id in ids]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; where the vocabulary is not byte-level, the piece's UTF-8."""
        piece = self._piece(token_id).removeprefix(self._prefix)
        return to_bytes(piece) if self._byte_level else piece.encode()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it covers."""
        spans: list[tuple[int, int]] = self.backend.encode(well_formed(text), add_special_tokens=False).offsets
        return spans

    def decode_stream(self, skip_special_tokens: bool = True) -> "FastStream":
        """A decoder for ids that arrive one by one."""
        return FastStream(self.backend, skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 over the canonical tokenizer.json."""
        return spec_fingerprint(self.backend)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, where there is any, how it was trained.

        tokenizer.json comes last: without it a directory holds no tokenizer.
        """
        from llmt.checkpoints.files import storage_errors, write_text_atomic

        folder = Path(directory)
        with storage_errors("creating a folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
        config = {
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(1e30),  # transformers' own value for "not known"
            **self.config,
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is; others rewrite it
            **self.special,
        }
        if self.training is not None:
            write_text_atomic(folder / TRAINING_FILE, _json(self.training, indent=None))
        if self.chat_template is not None:
            write_text_atomic(folder / TEMPLATE_FILE, self.chat_template)
        write_text_atomic(folder / CONFIG_FILE, _json(config, indent=2))
        write_text_atomic(folder / TOKENIZER_FILE, self.backend.to_str(pretty=True))

    def _piece(self, token_id: int) -> str:
        piece: str | None = self.backend.id_to_token(token_id) if token_id >= 0 else None
        if piece is None:
            raise MismatchError(f"token id {token_id}: the tokenizer has ids 0 to {self._vocab_size - 1}")
        return piece


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


def spec_fingerprint(backend: tokenizers.Tokenizer) -> str:
    """SHA-256 of the tokenizer.json that `backend` would write, whatever its spacing and key order.

    Padding, truncation and post-processing do not count: encoding uses none of them, and other programs add
    their own on loading.
    """
    spec = json.loads(backend.to_str()) | {"padding": None, "truncation": None, "post_processor": None}
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _json(value: Mapping[str, Any], indent: int | None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
