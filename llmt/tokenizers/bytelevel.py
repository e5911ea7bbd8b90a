"""bytes <-> the visible characters that stand for them in byte-level vocabularies."""

import re
from collections.abc import Iterator, Mapping
from typing import Any


def _byte_characters() -> list[str]:
    """Character of each byte: printable Latin-1 stands for itself, the rest for U+0100 up.

    The table is GPT-2's (openai/gpt-2, encoder.py, `bytes_to_unicode`).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
_BYTE_OF = {char: byte for byte, char in enumerate(BYTE_CHARACTERS)}


def to_characters(text: str) -> str:
    """The UTF-8 bytes of `text`, one visible character each."""
    return "".join([BYTE_CHARACTERS[byte] for byte in text.encode()])


def to_bytes(piece: str) -> bytes:
    """The bytes that a byte-level piece stands for; a piece that is none stands for its own UTF-8."""
    values = [_BYTE_OF.get(char) for char in piece]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else piece.encode()


def is_byte_level(spec: Mapping[str, Any]) -> bool:
    """Whether the pieces of a tokenizer.json (parsed) are written in the characters of this module."""
    decoders = list(_steps(spec.get("decoder"), "decoders"))
    return bool(decoders) and decoders[-1]["type"] == "ByteLevel"


def is_lossless(spec: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json (parsed) gives every text back: no part of it drops or rewrites a byte."""
    steps = list(_steps(spec.get("pre_tokenizer"), "pretokenizers"))
    if spec.get("normalizer") is not None or not steps:
        return False
    byte_level = steps[-1]
    if byte_level["type"] != "ByteLevel" or byte_level.get("add_prefix_space"):
        return False
    if not all(_keeps_text(step) for step in steps[:-1]):
        return False
    added = [token for token in spec.get("added_tokens") or () if not token.get("special")]
    if any(token.get("lstrip") or token.get("rstrip") or not token["content"].isascii() for token in added):
        return False
    return _model_is_lossless(spec, steps)


def _model_is_lossless(spec: Mapping[str, Any], steps: list[Mapping[str, Any]]) -> bool:
    model = spec["model"]
    vocab = model["vocab"]
    pieces = set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    if not pieces.issuperset(BYTE_CHARACTERS):
        return False
    decoders = list(_steps(spec.get("decoder"), "decoders"))
    kinds = [decoder["type"] for decoder in decoders]
    prefix = model.get("continuing_subword_prefix") or ""
    if model["type"] == "WordPiece":
        cut = {"Regex": cut_pattern(model["max_input_chars_per_word"])}
        patterns = [step.get("pattern") for step in steps]
        return bool(
            kinds == ["Replace", "ByteLevel"]
            and decoders[0]["pattern"] == {"Regex": "^" + re.escape(prefix)}
            and decoders[0]["content"] == ""
            and pieces.issuperset(prefix + char for char in BYTE_CHARACTERS)
            and {"String": prefix[:1]} in patterns
            and cut in patterns
        )
    plain = not (prefix or model.get("end_of_word_suffix") or model.get("dropout"))
    return kinds == ["ByteLevel"] and plain and model["type"] in ("BPE", "Unigram")


def cut_pattern(max_bytes: int) -> str:
    """A pattern that cuts text into parts of at most `max_bytes` UTF-8 bytes (a character has up to four)."""
    return rf"[\s\S]{{1,{max_bytes // 4}}}"


def _keeps_text(step: Mapping[str, Any]) -> bool:
    if step["type"] in ("Split", "Punctuation"):
        return bool(step.get("behavior") != "Removed")
    return bool(step["type"] == "Digits")


def _steps(node: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a possibly nested sequence of pre-tokenizers or decoders, in order."""
    if node is None:
        return
    if node["type"] == "Sequence":
        for child in node[key]:
            yield from _steps(child, key)
    else:
        yield node
