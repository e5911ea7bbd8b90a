"""A tokenizer directory <-> the parts of a tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from llmt.errors import ModelFileError
from llmt.tokenizers.validate import MAX_FILE_BYTES, parse_object

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TRAINING_FILE = "training.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_MAP_FILE = "special_tokens_map.json"
TOKENIZER_FILES = (TOKENIZER_FILE, CONFIG_FILE, TRAINING_FILE, TEMPLATE_FILE, SPECIAL_MAP_FILE)
"""What llmt writes for a tokenizer, and what it reads besides."""

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
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


@dataclass(frozen=True)
class TokenizerParts:
    """Everything that a tokenizer directory holds.

    Attributes:
        backend: The library's tokenizer. It must add nothing on its own: no padding, no truncation.
        special: Special tokens by role; each is in the vocabulary.
        training: How it was trained, by llmt. None for a foreign tokenizer.
        config: Further keys of `tokenizer_config.json` to keep.
        chat_template: Text of `chat_template.jinja` to keep.
    """

    backend: tokenizers.Tokenizer
    special: Mapping[str, str]
    training: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None


def read_parts(folder: Path) -> TokenizerParts:
    """Read and check a directory with a tokenizer.json; nothing in it is executed.

    Raises:
        ModelFileError: The directory or the tokenizer is missing, damaged or unsafe.
    """
    from llmt.tokenizers.trial import checked_tokenizer, rust_refusals  # only a reader needs them

    if not (folder / TOKENIZER_FILE).is_file():
        missing = f"it holds no {TOKENIZER_FILE}" if folder.is_dir() else "there is no such tokenizer directory"
        raise ModelFileError(f"{folder}: {missing}", "train one: llmt tokenizer train FILES")
    where = str(folder / TOKENIZER_FILE)
    spec, text = checked_tokenizer(_read(folder / TOKENIZER_FILE), where)
    config = _object(folder / CONFIG_FILE)
    special = parse_roles(_object(folder / SPECIAL_MAP_FILE) | config)
    known = {token["content"] for token in spec.get("added_tokens") or ()}.union(_pieces(spec["model"]["vocab"]))
    if lost := [token for token in special.values() if token not in known]:
        raise ModelFileError(f"{folder / CONFIG_FILE}: its token {lost[0]!r} is not in {TOKENIZER_FILE}")
    template = folder / TEMPLATE_FILE
    with rust_refusals(where):
        backend = tokenizers.Tokenizer.from_str(text)
        backend.decode(backend.encode("A word, 1 line.\n", add_special_tokens=False).ids)
    return TokenizerParts(
        backend=backend,
        special=special,
        training=_object(folder / TRAINING_FILE) or None,
        config={key: value for key, value in config.items() if key not in _DROPPED and key not in ROLES},
        chat_template=_read(template).decode(errors="replace") if template.is_file() else None,
    )


def write_parts(folder: Path, parts: TokenizerParts) -> None:
    """Write the directory; tokenizer.json comes last: without it a directory holds no tokenizer.

    Raises:
        StorageError: The file system refused.
    """
    from llmt.checkpoints.files import storage_errors, write_text_atomic

    with storage_errors("creating a folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    config = {
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),  # transformers' own value for "not known"
        **parts.config,
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is; others rewrite it
        **parts.special,
    }
    forget_tokenizer(folder)
    if parts.training is not None:
        write_text_atomic(folder / TRAINING_FILE, _json(parts.training, indent=None))
    if parts.chat_template is not None:
        write_text_atomic(folder / TEMPLATE_FILE, parts.chat_template)
    write_text_atomic(folder / CONFIG_FILE, _json(config, indent=2))
    write_text_atomic(folder / TOKENIZER_FILE, parts.backend.to_str(pretty=True))


def forget_tokenizer(folder: Path) -> None:
    """Remove what an earlier tokenizer left in a directory, tokenizer.json first: the next may not have it all.

    Raises:
        StorageError: The file system refused.
    """
    from llmt.checkpoints.files import storage_errors

    for name in TOKENIZER_FILES:
        with storage_errors("removing an older tokenizer", folder / name):
            (folder / name).unlink(missing_ok=True)


def parse_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """Tokens by role from tokenizer_config.json, whose values are texts or objects with a "content".

    Where a tokenizer has only BERT's names, `[SEP]` ends and `[CLS]` begins a document.
    """
    special: dict[str, str] = {}
    for role in ROLES:
        value = config.get(role)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            special[role] = token
    for role, stand_in in _STAND_INS.items():
        if role not in special and stand_in in special:
            special[role] = special[stand_in]
    return special


def default_template(found: Any) -> str | None:
    """The chat template in one of its spellings: a text, or several by name of which one is the default."""
    if isinstance(found, str):
        return found
    if isinstance(found, dict):
        return default_template(found.get("default"))
    named = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    return next((default_template(item.get("template")) for item in named if item.get("name") == "default"), None)


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


def _json(value: Mapping[str, Any], indent: int | None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
