"""tokenizer files of any make -> a folder of checked ones that transformers can be given.

What is checked is what is loaded: files are copied aside first. References to code are dropped, a tokenizer.json goes
through `trial`, and files that name no class of transformers (vocab.json with merges.txt, a SentencePiece model) are
turned into a tokenizer.json here.
"""

import importlib.util
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmt.errors import MissingPackageError, ModelFileError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.files import CONFIG_FILE, ROLES, SPECIAL_MAP_FILE, TOKENIZER_FILE, TOKENIZER_FILES
from llmt.tokenizers.sentencepiece import read_sentencepiece, roles, to_tokenizer_json
from llmt.tokenizers.trial import checked_tokenizer
from llmt.tokenizers.validate import MAX_FILE_BYTES, parse_object

MODEL_CONFIG_FILE = "config.json"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

_SETTINGS = {*TOKENIZER_FILES, MODEL_CONFIG_FILE, "generation_config.json", "added_tokens.json"} - {TOKENIZER_FILE}
# Classes that work on bytes or code points.
_WITHOUT_VOCABULARY = ("ByT5", "Canine", "Perceiver", "byt5", "canine", "perceiver")
# Weights and code are no part of a tokenizer.
_LEFT_OUT = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".py", ".so", ".pkl"}
# All that the choice of a class looks at.
_MODEL_CONFIG_KEYS = ("model_type", "model_name", "tokenizer_class", "transformers_version")
# Names that say what a token is for, where no file does.
_WELL_KNOWN = {
    "eos_token": ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]"),
    "bos_token": ("<|endoftext|>", "<s>", "<|begin_of_text|>", "<bos>", "[CLS]"),
    "pad_token": ("<|pad|>", "<pad>", "<|padding|>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}
_GPT2_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def stage(source: Path, aside: Path) -> list[str]:
    """Copy what a tokenizer is made of, checked, into an empty folder.

    Args:
        source: A folder, a file that is a tokenizer.json, or a SentencePiece `.model`.
        aside: Where the copies go.

    Returns:
        A sentence for each thing that the files left open and that was decided here.

    Raises:
        ModelFileError: There is no tokenizer, or one that is damaged or could do harm.
        MissingPackageError: transformers needs a package to read it.
    """
    if source.is_file():
        name = "tokenizer.model" if source.suffix == ".model" else TOKENIZER_FILE
        (aside / name).write_bytes(read_bounded(source))
    else:
        _copy_folder(source, aside)
    config = _without_code(aside, CONFIG_FILE, source)
    model = _without_code(aside, MODEL_CONFIG_FILE, source, _MODEL_CONFIG_KEYS)
    special_map = _without_code(aside, SPECIAL_MAP_FILE, source)
    if not (aside / TOKENIZER_FILE).is_file():
        if config.get("tokenizer_class") or model.get("model_type"):
            named = str(config.get("tokenizer_class") or model.get("model_type"))
            _check_older_files(aside, source, needs_vocabulary=not named.startswith(_WITHOUT_VOCABULARY))
            return []
        notes, found = _build(aside, source)
        config = found | config
        _write_json(aside / CONFIG_FILE, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    else:
        notes = []
    path = source / TOKENIZER_FILE if source.is_dir() else source
    spec, text = checked_tokenizer((aside / TOKENIZER_FILE).read_bytes(), str(path))
    (aside / TOKENIZER_FILE).write_text(text, encoding="utf-8")
    if not any(role in config or role in special_map for role in ROLES):
        notes += _name_roles(aside, _special_contents(spec), config)
    return notes


def read_bounded(path: Path) -> bytes:
    """The file's bytes, at most one more than the limit, so that a huge file is never held.

    Raises:
        ModelFileError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: it cannot be read: {error.strerror}", "copy the tokenizer again") from error


def _copy_folder(source: Path, aside: Path) -> None:
    try:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.suffix not in _LEFT_OUT and path.stat().st_size <= MAX_FILE_BYTES:
                shutil.copyfile(path, aside / path.name)
    except OSError as error:
        where = error.filename or source
        raise ModelFileError(f"{where}: it cannot be read: {error.strerror}", "check the path") from error


def _without_code(aside: Path, name: str, source: Path, kept: Iterable[str] | None = None) -> dict[str, Any]:
    """A JSON file of the folder, rewritten without what would make a reader import code."""
    if not (aside / name).is_file():
        return {}
    values = parse_object((aside / name).read_bytes(), str(source / name))
    clean = {key: value for key, value in values.items() if key not in ("auto_map", "trust_remote_code")}
    if kept is not None:
        clean = {key: clean[key] for key in kept if key in clean}
    _write_json(aside / name, clean)
    return clean


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _check_older_files(aside: Path, source: Path, *, needs_vocabulary: bool) -> None:
    """What a class of transformers will hand to a library as it is.

    A class without its vocabulary loads as well, and makes nothing of any text; few need none, as ByT5.
    """
    if needs_vocabulary and not [path for path in aside.iterdir() if path.name not in _SETTINGS]:
        raise ModelFileError(f"{source}: it holds settings and no vocabulary", "copy the tokenizer again, all files")
    if (aside / VOCAB_FILE).is_file():
        _vocabulary((aside / VOCAB_FILE).read_bytes(), str(source / VOCAB_FILE), holes=True)
    for path in aside.glob("*.model"):
        try:
            read_sentencepiece(path.read_bytes(), str(source / path.name))
        except ModelFileError:
            continue  # a ranked list of bytes (tiktoken) has this name too; transformers will say
        for package in ("sentencepiece", "google.protobuf"):
            if not _is_installed(package):
                name = package.rpartition(".")[2]
                raise MissingPackageError(name, f"transformers reads {path.name} with it")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def _build(aside: Path, source: Path) -> tuple[list[str], dict[str, str]]:
    """Write a tokenizer.json for files that name no class; what was decided, and the special tokens by role."""
    if (aside / VOCAB_FILE).is_file() and (aside / MERGES_FILE).is_file():
        _write_json(aside / TOKENIZER_FILE, _gpt2(aside, source))
        return [f"{VOCAB_FILE} and {MERGES_FILE} name no class; text is split as GPT-2 splits it"], {}
    models = sorted(aside.glob("*.model"))
    if len(models) == 1:
        model = read_sentencepiece(models[0].read_bytes(), str(source if source.is_file() else source / models[0].name))
        _write_json(aside / TOKENIZER_FILE, to_tokenizer_json(model))
        models[0].unlink()
        return [], roles(model)
    raise ModelFileError(
        f"{source}: it holds no tokenizer that can be read: no {TOKENIZER_FILE}, no class is named, and neither "
        f"{VOCAB_FILE} with {MERGES_FILE} nor one .model file is there",
        f"copy its {CONFIG_FILE} too",
    )


def _gpt2(aside: Path, source: Path) -> dict[str, Any]:
    """The tokenizer.json of a byte-level vocab.json and merges.txt."""
    vocab = _vocabulary((aside / VOCAB_FILE).read_bytes(), str(source / VOCAB_FILE))
    if not vocab.keys() >= set(BYTE_CHARACTERS):
        raise ModelFileError(
            f"{source / VOCAB_FILE}: it has no piece for each byte, so how text is split is not known",
            f"copy its {CONFIG_FILE} too",
        )
    text = (aside / MERGES_FILE).read_bytes().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line and not line.startswith("#version")]
    known = {name for names in _WELL_KNOWN.values() for name in names}
    (aside / VOCAB_FILE).unlink()
    (aside / MERGES_FILE).unlink()
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": piece, **_GPT2_ADDED} for piece, number in vocab.items() if piece in known
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [line.split(" ") for line in lines],
        },
    }


def _vocabulary(data: bytes, where: str, holes: bool = False) -> dict[str, int]:
    vocab = parse_object(data, where)
    limit = 2 * len(vocab) + 1000 if holes else len(vocab)
    if not all(type(number) is int and 0 <= number < limit for number in vocab.values()):
        raise ModelFileError(f"{where}: its {len(vocab)} ids are not 0 to {len(vocab) - 1}", "copy it again")
    return vocab


def _special_contents(spec: Mapping[str, Any]) -> set[str]:
    return {token["content"] for token in spec.get("added_tokens") or () if token.get("special")}


def _name_roles(aside: Path, special: set[str], config: Mapping[str, Any]) -> list[str]:
    """Note in tokenizer_config.json what the special tokens are for, by their names."""
    found = {
        role: name for role, names in _WELL_KNOWN.items() if (name := next((n for n in names if n in special), None))
    }
    _write_json(aside / CONFIG_FILE, {"tokenizer_class": "PreTrainedTokenizerFast", **config, **found})
    if not found:
        return []
    named = ", ".join(f"{role} {token!r}" for role, token in found.items())
    return [f"no file says what the special tokens are for; by their names: {named}"]
