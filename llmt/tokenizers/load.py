"""directory -> tokenizer."""

from pathlib import Path
from types import TracebackType
from typing import Any

import tokenizers

from llmt.errors import ModelFileError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.fast import CONFIG_FILE, TEMPLATE_FILE, TOKENIZER_FILE, TRAINING_FILE, FastTokenizer
from llmt.tokenizers.huggingface import HFTokenizerWrapper
from llmt.tokenizers.validate import MAX_FILE_BYTES, parse_object, parse_tokenizer

SPECIAL_MAP_FILE = "special_tokens_map.json"
OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", CONFIG_FILE)

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
# BERT's names for the same parts, taken where a tokenizer has no others.
_STAND_INS = {"eos_token": "sep_token", "bos_token": "cls_token"}
# Never kept: they would make a reader import code, or belong to the machine that wrote the file.
_DROPPED = {
    "auto_map",
    "tokenizer_file",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_class",
    "backend",
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer in a directory on this machine; nothing is fetched and nothing in it is executed.

    A `tokenizer.json`, from llmt or from elsewhere, is checked and given to the Rust library alone. Only
    without one are the older files (vocab.json, tokenizer.model, ...) handed to transformers.

    Raises:
        ModelFileError: The directory or the tokenizer is missing, damaged or unsafe.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: there is no such tokenizer directory", "train one: llmt tokenizer train FILES")
    if (folder / TOKENIZER_FILE).is_file():
        return _load_fast(folder)
    if any((folder / name).is_file() for name in OTHER_FILES):
        return HFTokenizerWrapper(folder, local_files_only=True)
    raise ModelFileError(f"{folder}: it holds no {TOKENIZER_FILE}", "train one: llmt tokenizer train FILES")


def _load_fast(folder: Path) -> FastTokenizer:
    where = str(folder / TOKENIZER_FILE)
    data = _read(folder / TOKENIZER_FILE)
    spec = parse_tokenizer(data, where)
    config = _object(folder / CONFIG_FILE)
    special = _special_tokens(_object(folder / SPECIAL_MAP_FILE) | config)
    known = {token["content"] for token in spec.get("added_tokens") or ()}.union(_pieces(spec["model"]["vocab"]))
    if lost := [token for token in special.values() if token not in known]:
        raise ModelFileError(f"{folder / CONFIG_FILE}: its token {lost[0]!r} is not in {TOKENIZER_FILE}")
    training = _object(folder / TRAINING_FILE) or None
    kept = {key: value for key, value in config.items() if key not in _DROPPED and key not in _ROLES}
    template = folder / TEMPLATE_FILE
    template_text = _read(template).decode(errors="replace") if template.is_file() else None
    with _RustRefusals(where):
        backend = tokenizers.Tokenizer.from_str(data.decode("utf-8-sig"))
        backend.decode(backend.encode("A word, 1 line.\n", add_special_tokens=False).ids)
    return FastTokenizer(backend, special, training, kept, template_text)


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Tokens by role from tokenizer_config.json, whose values are texts or objects with a "content"."""
    special: dict[str, str] = {}
    for role in _ROLES:
        value = config.get(role)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            special[role] = token
    for role, stand_in in _STAND_INS.items():
        if role not in special and stand_in in special:
            special[role] = special[stand_in]
    return special


def _pieces(vocab: Any) -> set[str]:
    return set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}


def _object(path: Path) -> dict[str, Any]:
    return parse_object(_read(path), str(path)) if path.is_file() else {}


def _read(path: Path) -> bytes:
    """The file's bytes, at most one more than the limit, so that a huge file is never held."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: it cannot be read: {error.strerror}") from error


class _RustRefusals:
    """Turns what the Rust library raises, a bare `Exception` or a panic, into a `ModelFileError`."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception or (kind is not None and kind.__name__ == "PanicException"):
            raise ModelFileError(f"{self._where}: {error}", "copy or train the tokenizer again") from error
