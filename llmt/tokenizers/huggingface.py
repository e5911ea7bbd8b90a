"""Any tokenizer that transformers knows, behind llmt's interface."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, final

from llmt.errors import ConfigError, HubError, MismatchError, MissingPackageError, ModelFileError, UsageError
from llmt.tokenizers.base import MergeStep, Tokenizer, TokenStream, WholeStream, well_formed
from llmt.tokenizers.bytelevel import is_byte_level, is_lossless, to_bytes
from llmt.tokenizers.corpus import MeasuredCorpus
from llmt.tokenizers.fast import FastStream, spec_fingerprint
from llmt.tokenizers.files import ROLES, TOKENIZER_FILE, default_template, forget_tokenizer, parse_roles
from llmt.tokenizers.foreign import stage
from llmt.tokenizers.trial import rust_refusals

_HUB_OPTIONS = ("revision", "cache_dir", "force_download", "token")
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.tsv")
# Letters, digits, `-`, `_` and `.`; at most one slash; what the hub itself refuses is left out.
_HUB_NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_](?:[\w.-]{0,94}\w)?", re.ASCII)
_PACKAGES = ("sentencepiece", "protobuf", "tiktoken", "mistral_common")


@final
class HFTokenizerWrapper(Tokenizer):
    """A tokenizer of transformers, from a directory, a file or the hub.

    What this class does not define is the wrapped object's: reading `wrapper.padding_side`, setting
    `wrapper.padding_side = "left"`, calling `wrapper(text)`, `wrapper.apply_chat_template(...)`. Nothing is kept here
    that could grow stale: change the wrapped object, and the wrapper follows. It is a proxy for it to `isinstance` too,
    so that a trainer which asks for a tokenizer of transformers takes it.

    Args:
        name_or_path: A directory; a file that is a tokenizer.json or a SentencePiece `.model`; or a name on the hub
            such as `gpt2` or `owner/name`. A directory with nothing but vocab.json and merges.txt will do.
        local_files_only: Never ask the hub; take what its cache holds.
        **kwargs: Passed to `AutoTokenizer.from_pretrained`.

    Raises:
        ModelFileError: It does not exist, or holds no tokenizer that can be read, or one that could do harm.
        HubError: A name that the hub cannot resolve now.
        MissingPackageError: transformers, or a package that this tokenizer needs, is not installed.
        UsageError: `trust_remote_code` was asked for.
    """

    def __init__(self, name_or_path: str | Path, local_files_only: bool = False, **kwargs: Any) -> None:
        if kwargs.pop("trust_remote_code", False):
            raise UsageError("trust_remote_code: llmt never runs code from a model's files", "leave it out")
        source, hub = Path(name_or_path), None
        if not (str(name_or_path) and os.path.exists(source)):
            hub = _hub_name(name_or_path)
            source = _download(hub, local_files_only, kwargs)
        elif subfolder := kwargs.pop("subfolder", ""):
            source = source / subfolder
        tokenizer, notes = _load(source, hub, kwargs)
        _become(self, tokenizer, notes)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """The tokenizer in a directory on this machine; the hub is not asked."""
        return cls(directory, local_files_only=True)

    @property
    def tokenizer(self) -> Any:
        """The wrapped object. Another may be put in its place."""
        return self.__dict__["tokenizer"]

    @tokenizer.setter
    def tokenizer(self, other: Any) -> None:
        """Wrap another object; one that cannot pad is given a token for that."""
        _become(self, other, ())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided where the files left it open, in sentences: which token pads, for one."""
        notes: tuple[str, ...] = self.__dict__["notes"]
        return notes

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The wrapped object's class, as for any proxy; `type(wrapper)` is the wrapper's own."""
        return type(self.__dict__["tokenizer"]) if "tokenizer" in self.__dict__ else HFTokenizerWrapper

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "tokenizer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tokenizer":
            object.__setattr__(self, name, value)
        else:
            setattr(self.tokenizer, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.tokenizer, self.notes)

    def __repr__(self) -> str:
        return f"HFTokenizerWrapper({self.tokenizer!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped tokenizer, which reads special tokens out of a text and adds its own."""
        return self.tokenizer(*args, **kwargs)

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self.token_to_id(token) is not None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included (transformers' own `vocab_size` leaves them out)."""
        return len(self.tokenizer)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role; BERT's separator and [CLS] end and begin where there are no others."""
        return parse_roles({role: self.tokenizer.special_tokens_map.get(role) for role in ROLES})

    @property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that no text spells, with their ids."""
        return {token.content: n for n, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @property
    def chat_template(self) -> str | None:
        """The template of the wrapped tokenizer."""
        return default_template(self.tokenizer.chat_template)

    def keep_chat_template(self, template: str) -> None:
        """Write conversations by this template from now on; it is saved with the tokenizer."""
        self.tokenizer.chat_template = template

    def add_control_tokens(self, tokens: Sequence[str]) -> None:
        """Know more tokens that no text spells, behind those that there are; a token that is known is only marked."""
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)

    @property
    def is_lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for every well-formed text, as far as its parts tell."""
        return self._backend is not None and is_lossless(self._spec())

    def encode(self, text: str, add_special_tokens: bool = False, **kwargs: Any) -> list[int]:
        """Ids of `text`; no special token is read out of it.

        Args:
            text: Any text.
            add_special_tokens: Put around it what the tokenizer puts around a text, or, where it puts nothing, the
                tokens that begin and end a document.
            **kwargs: Passed to the wrapped tokenizer's `encode`, whose result it then is.
        """
        if kwargs:
            asked = {"split_special_tokens": True, "add_special_tokens": add_special_tokens, **kwargs}
            ids: list[int] = self.tokenizer.encode(well_formed(text), **asked)
            return ids
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        if not texts:
            return []
        frames = self.tokenizer.num_special_tokens_to_add() > 0
        encoded = self.tokenizer(
            [well_formed(text) for text in texts],
            add_special_tokens=add_special_tokens and frames,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        batch: list[list[int]] = encoded["input_ids"]
        return [self._as_document(ids) for ids in batch] if add_special_tokens and not frames else batch

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, **kwargs: Any) -> str:
        """Text of `ids`, a list, an array or a tensor; further options go to the wrapped tokenizer."""
        listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        asked = {"clean_up_tokenization_spaces": False, **kwargs}
        text: str = self.tokenizer.decode(listed, skip_special_tokens=skip_special_tokens, **asked)
        return text

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The piece of the vocabulary behind each id."""
        size = self.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise MismatchError(f"token id {token_id}: the tokenizer has ids 0 to {size - 1}")
        pieces: list[str] = self.tokenizer.convert_ids_to_tokens(list(ids))
        return pieces

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece of the vocabulary, or None where there is none."""
        if self._backend is not None:
            token_id: int | None = self._backend.token_to_id(token)
            return token_id
        vocab: dict[str, int] = self.tokenizer.get_vocab()
        return vocab.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for; where the vocabulary is not byte-level, the piece's UTF-8."""
        piece = self.tokens([token_id])[0]
        if self._backend is None:
            return piece.encode()
        piece = piece.removeprefix(getattr(self._backend.model, "continuing_subword_prefix", None) or "")
        # Only the decoder is read, not the whole vocabulary; nothing is kept, since it may be replaced at any time.
        decoder = self._backend.decoder
        parsed = None if decoder is None else json.loads(decoder.__getstate__())
        return to_bytes(piece) if is_byte_level({"decoder": parsed}) else piece.encode()

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each id of `encode(text)` the characters it covers."""
        if self._backend is None:
            return super().offsets(text)
        encoded = self.tokenizer(
            well_formed(text), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def decode_stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder for ids that arrive one by one."""
        if self._backend is not None:
            return FastStream(self._backend, skip_special_tokens)
        return WholeStream(self, skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 over the canonical tokenizer.json, or over class and vocabulary where there is none."""
        if self._backend is not None:
            return spec_fingerprint(self._backend)
        parts = [type(self.tokenizer).__name__, sorted(self.tokenizer.get_vocab().items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def get_merge_history(self) -> list[MergeStep]:
        """The merges of its vocabulary, in order; empty where its model has none."""
        if self._backend is None:
            return []
        pairs = self._spec()["model"].get("merges") or []
        return [MergeStep(left=a, right=b, piece=a + b, count=None, score=None) for a, b in pairs]

    def train(
        self, texts: Iterable[str], vocab_size: int = 30_000, min_frequency: int = 2, verbose: bool = False
    ) -> None:
        """Learn a new vocabulary for the same kind of tokenizer, by its own `train_new_from_iterator`.

        The wrapped object is replaced. `verbose` has nothing to tell: the library does not say how far it is.
        """
        if self._backend is None:
            raise UsageError("tokenizer: one written in Python cannot be trained", "use one with a tokenizer.json")
        corpus = MeasuredCorpus(texts)
        options: dict[str, Any] = {"show_progress": False}
        if self._spec()["model"]["type"] != "Unigram":
            options["min_frequency"] = min_frequency
        with rust_refusals("tokenizer"):
            trained = self.tokenizer.train_new_from_iterator(corpus, vocab_size, **options)
        corpus.require_text()
        if len(trained) > vocab_size:
            raise ConfigError(
                [f"vocab_size {vocab_size}: special tokens and alphabet alone need {len(trained)}"],
                f"ask for at least {len(trained)}",
            )
        self.tokenizer = trained

    def save_pretrained(self, directory: str | Path, **kwargs: Any) -> None:
        """Let transformers write its files aside, then move each into place, tokenizer.json last."""
        from llmt.checkpoints.files import storage_errors

        folder = Path(directory)
        with storage_errors("writing a tokenizer", folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".tmp-tokenizer-", dir=folder) as aside:
                self.tokenizer.save_pretrained(aside, **kwargs)
                forget_tokenizer(folder)
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


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """One of our tokenizers as it is, a tokenizer of transformers wrapped.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        name = type(tokenizer).__name__
        raise UsageError(f"tokenizer: a {name} is no tokenizer", "load_tokenizer(DIRECTORY), or AutoTokenizer's")
    wrapper = HFTokenizerWrapper.__new__(HFTokenizerWrapper)
    _become(wrapper, tokenizer, ())
    return wrapper


def _become(wrapper: HFTokenizerWrapper, tokenizer: Any, notes: Sequence[str]) -> None:
    """Wrap this object; where it cannot pad, choose a token for that and say which."""
    wrapper.__dict__["tokenizer"] = tokenizer
    wrapper.__dict__["notes"] = tuple(notes)
    special = wrapper.special_tokens
    if "pad_token" in special:
        return
    for role, name in (("eos_token", "end-of-text"), ("unk_token", "unknown")):
        if role in special:
            tokenizer.pad_token = special[role]
            wrapper.__dict__["notes"] += (f"no padding token is named; the {name} token {special[role]!r} pads",)
            return
    wrapper.__dict__["notes"] += ("no padding token is named, and none was chosen: set wrapper.tokenizer.pad_token",)


def _restore(tokenizer: Any, notes: tuple[str, ...]) -> HFTokenizerWrapper:
    """The wrapper that was pickled or copied."""
    wrapper = HFTokenizerWrapper.__new__(HFTokenizerWrapper)
    wrapper.__dict__.update(tokenizer=tokenizer, notes=notes)
    return wrapper


def _load(source: Path, hub: str | None, kwargs: dict[str, Any]) -> tuple[Any, list[str]]:
    """What transformers makes of the files, and what was decided about them."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingPackageError("transformers", str(error)) from error
    name = hub or str(source)
    with tempfile.TemporaryDirectory(prefix="llmt-tokenizer-") as folder:
        aside = Path(folder)
        notes = stage(source, aside)
        options = kwargs | {"local_files_only": True, "trust_remote_code": False}
        with _transformers_errors(name):
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        _rename(tokenizer, folder, name)
    return tokenizer, notes


def _rename(tokenizer: Any, folder: str, name: str) -> None:
    """Let the tokenizer remember where its files came from, not where they were checked."""
    for values in (vars(tokenizer), tokenizer.init_kwargs):
        for key, value in values.items():
            if isinstance(value, str) and value.startswith(folder):
                values[key] = name + value.removeprefix(folder)


@contextmanager
def _transformers_errors(name: str) -> Iterator[None]:
    """What transformers raises over files, as errors of llmt."""
    try:
        with rust_refusals(name):
            yield
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        package = next((package for package in _PACKAGES if package in str(error).lower()), "tokenizers")
        raise MissingPackageError(package, reason) from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{name}: it holds no tokenizer that transformers can read: {reason}") from error


def _download(name: str, local_files_only: bool, kwargs: dict[str, Any]) -> Path:
    """The tokenizer's files of a repository on the hub, in the hub's own cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingPackageError("huggingface_hub", str(error)) from error
    options = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
    inside: str = kwargs.pop("subfolder", "")
    try:
        folder: str = snapshot_download(
            name,
            local_files_only=local_files_only,
            allow_patterns=[f"{inside}/{pattern}" if inside else pattern for pattern in _HUB_FILES],
            ignore_patterns=[f"{inside}/*/*" if inside else "*/*"],
            **options,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"{name}: there is no such directory here, and the hub cannot resolve it: {reason}",
            "check the spelling and the network, or name a directory",
        ) from error
    return Path(folder) / inside


def _hub_name(name: str | Path) -> str:
    """The name of what is not on this machine, where it can be one on the hub.

    Raises:
        ModelFileError: Only a path can be meant.
    """
    text = str(name)
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(text):
        shown = text[:200] if text.isprintable() and text else repr(text[:200])
        raise ModelFileError(
            f"{shown}: there is no such tokenizer directory, and it is no name of the hub",
            "check the path; a name is written NAME or OWNER/NAME",
        )
    return text


def ids_in_transformers(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids that transformers reads from texts with the tokenizer in a directory, as text alone.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingPackageError("transformers", str(error)) from error
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
