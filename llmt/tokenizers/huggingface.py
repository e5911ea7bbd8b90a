"""Any tokenizer that transformers knows, behind llmt's interface."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from llmt.errors import HubError, MismatchError, MissingPackageError, ModelFileError, UsageError
from llmt.tokenizers.base import Tokenizer, TokenStream, well_formed
from llmt.tokenizers.bytelevel import is_byte_level, is_lossless, to_bytes
from llmt.tokenizers.fast import TOKENIZER_FILE, FastStream, spec_fingerprint


@final
class HFTokenizerWrapper(Tokenizer):
    """A tokenizer of transformers, from a directory or the hub.

    What this class does not define is looked up on the wrapped object, and calling the wrapper calls it:
    `wrapper(text)`, `wrapper.apply_chat_template(...)`, `len(wrapper)`.

    Args:
        name_or_path: A directory, or a name on the hub such as `gpt2` or `owner/name`.
        local_files_only: Never ask the hub; take what its cache holds.
        **kwargs: Passed to `AutoTokenizer.from_pretrained`.

    Attributes:
        tokenizer: The wrapped object. It may be replaced.

    Raises:
        ModelFileError: A directory that does not exist or holds no tokenizer that can be read.
        HubError: A name that the hub cannot resolve now.
        MissingPackageError: transformers, or a package that this tokenizer needs, is not installed.
        UsageError: `trust_remote_code` was asked for.
    """

    tokenizer: Any

    def __init__(self, name_or_path: str | Path, local_files_only: bool = False, **kwargs: Any) -> None:
        if kwargs.get("trust_remote_code"):
            raise UsageError("trust_remote_code: llmt never runs code from a model's files", "leave it out")
        name = str(name_or_path)
        is_local = Path(name).is_dir()
        if not is_local and _looks_like_path(name_or_path):
            raise ModelFileError(f"{name}: there is no such tokenizer directory", "check the path")
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingPackageError("transformers", str(error)) from error
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                name, **kwargs | {"local_files_only": local_files_only, "trust_remote_code": False}
            )
        except ImportError as error:
            package = "sentencepiece" if "sentencepiece" in str(error).lower() else "tokenizers"
            raise MissingPackageError(package, str(error).strip().splitlines()[0]) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _load_error(name, is_local, error) from error

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped tokenizer."""
        if name == "tokenizer" or name.startswith("__"):  # not there yet while unpickling or copying
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped tokenizer."""
        return self.tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included (transformers' own `vocab_size` leaves them out)."""
        return len(self.tokenizer)

    @property
    def eos_token_id(self) -> int:
        """Ends a document; BERT's separator where there is no other."""
        for token_id in (self.tokenizer.eos_token_id, getattr(self.tokenizer, "sep_token_id", None)):
            if token_id is not None:
                return int(token_id)
        raise ModelFileError("tokenizer: it names no end-of-text token", "set wrapper.tokenizer.eos_token")

    @property
    def bos_token_id(self) -> int | None:
        """Begins a document; BERT's [CLS] where there is no other."""
        token_id: int | None = self.tokenizer.bos_token_id
        return token_id if token_id is not None else getattr(self.tokenizer, "cls_token_id", None)

    @property
    def pad_token_id(self) -> int | None:
        """Fills up short sequences."""
        token_id: int | None = self.tokenizer.pad_token_id
        return token_id

    @property
    def unk_token_id(self) -> int | None:
        """Stands for what the vocabulary cannot spell."""
        token_id: int | None = self.tokenizer.unk_token_id
        return token_id

    @property
    def is_lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for every well-formed text, as far as its parts tell."""
        return self._backend is not None and is_lossless(self._spec())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added and no special token is read out of it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        if not texts:
            return []
        clean = [well_formed(text) for text in texts]
        encoded = self.tokenizer(
            clean,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of the vocabulary behind each id."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise MismatchError(f"token id {token_id}: the tokenizer has ids 0 to {self.vocab_size - 1}")
        pieces: list[str] = self.tokenizer.convert_ids_to_tokens(list(ids))
        return pieces

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; where the vocabulary is not byte-level, the piece's UTF-8."""
        piece = self.tokens([token_id])[0]
        byte_level = self._backend is not None and is_byte_level(self._spec())
        return to_bytes(piece) if byte_level else piece.encode()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it covers.

        Raises:
            UsageError: The wrapped tokenizer is written in Python, and does not know.
        """
        if self._backend is None:
            raise UsageError("offsets: this tokenizer does not keep them", "use one that has a tokenizer.json")
        encoded = self.tokenizer(
            well_formed(text),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def decode_stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder for ids that arrive one by one."""
        if self._backend is not None:
            return FastStream(self._backend, skip_special_tokens)
        return _WholeStream(self, skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 over the canonical tokenizer.json, or over class and vocabulary where there is none."""
        if self._backend is not None:
            return spec_fingerprint(self._backend)
        parts = [type(self.tokenizer).__name__, sorted(self.tokenizer.get_vocab().items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def save_pretrained(self, directory: str | Path) -> None:
        """Let transformers write its files aside, then move each into place, tokenizer.json last."""
        from llmt.checkpoints.files import storage_errors

        folder = Path(directory)
        with storage_errors("writing a tokenizer", folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".tmp-tokenizer-", dir=folder) as aside:
                self.tokenizer.save_pretrained(aside)
                written = sorted(Path(aside).iterdir(), key=lambda path: (path.name == TOKENIZER_FILE, path.name))
                for path in written:
                    os.replace(path, folder / path.name)

    @property
    def _backend(self) -> Any:
        """The Rust tokenizer inside, or None for one written in Python."""
        return getattr(self.tokenizer, "backend_tokenizer", None)

    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(self._backend.to_str())
        return spec


class _WholeStream:
    """Streaming for tokenizers without the Rust library: decode all ids so far, give what is new."""

    def __init__(self, tokenizer: HFTokenizerWrapper, skip_special_tokens: bool) -> None:
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


def _looks_like_path(name: str | Path) -> bool:
    """Whether only a path can be meant: a hub name has one slash at most and begins with a letter or digit."""
    text = str(name)
    return isinstance(name, Path) or not text[:1].isalnum() or "\\" in text or text.count("/") > 1


def _load_error(name: str, is_local: bool, error: Exception) -> ModelFileError | HubError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if is_local:
        return ModelFileError(f"{name}: it holds no tokenizer that transformers can read: {reason}")
    return HubError(
        f"{name}: there is no such directory here, and the hub cannot resolve it: {reason}",
        "check the spelling and the network, or name a directory",
    )
