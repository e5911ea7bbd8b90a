"""bytes of a SentencePiece model -> a tokenizer.json that gives the same ids.

The file is a message of protocol buffers, of which a few fields are needed; they are read here, so that neither
the sentencepiece package nor its parser sees a foreign file. Field numbers are those of sentencepiece_model.proto
(google/sentencepiece).
"""

import base64
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmt.errors import ModelFileError

SPACE = "\u2581"
UNIGRAM, BPE, CHARACTERS = 1, 2, 4
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)

Value = int | float | bytes


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass
class SentencePieceModel:
    """What a `.model` file says. Ids are places in `pieces`; -1 where there is none."""

    pieces: list[Piece] = field(default_factory=list)
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    space_follows: bool = False
    special: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    character_map: bytes = b""
    space_in_front: bool = True
    single_spaces: bool = True
    mark_spaces: bool = True

    @property
    def has_user_symbols(self) -> bool:
        """Whether some pieces are taken out of a text before it is split."""
        return any(piece.kind == USER for piece in self.pieces)


def read_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Parse a `.model` file.

    Raises:
        ModelFileError: It is none, or one of a kind that has no tokenizer.json.
    """
    try:
        model = _parse(data)
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise ModelFileError(f"{where}: not a SentencePiece model ({error})", "copy it again") from error
    reason = None
    if not model.pieces:
        reason = "it has no pieces"
    elif model.algorithm not in (UNIGRAM, BPE, CHARACTERS):
        reason = "it splits into whole words"
    elif model.space_follows or not model.mark_spaces:
        reason = "it marks the end of words"
    if reason is not None:
        raise ModelFileError(f"{where}: {reason}, and cannot be read here", "use a unigram or BPE model")
    return model


def to_tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """The tokenizer.json that splits as the model does.

    Control tokens and bytes are never read out of a text: for BPE nothing merges into them; before a unigram model
    the first character of such a text is cut off. Four things differ from the model's own reading: unknown
    characters beside that cut are not joined; where the user named symbols, a text that begins with one, or ends
    in a space; a carriage return with a line feed, which the library normalizes as one character; and which of
    several equally likely ways a unigram model takes to cut a run of one sign.
    """
    # Symbols of the user cut the text into parts, of which only the first gets a space in front. Otherwise that is
    # the normalizer's part: this one gives none to a text that begins with a space.
    in_front = "first" if model.has_user_symbols and model.space_in_front else "never"
    pre_tokenizers: list[dict[str, Any]] = [
        {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": in_front,
            "split": not any(SPACE in piece.text[1:] for piece in model.pieces if piece.kind == NORMAL),
        }
    ]
    hidden = [piece.text for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL, BYTE)]
    if model.algorithm == UNIGRAM and hidden:
        pre_tokenizers.append(
            {"type": "Split", "pattern": {"Regex": _cut_open(hidden)}, "behavior": "Isolated", "invert": False}
        )
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        *([{"type": "ByteFallback"}] if model.byte_fallback else []),
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.space_in_front else []),
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": piece.text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece.kind != USER,
            }
            for number, piece in enumerate(model.pieces)
            if piece.kind in (UNKNOWN, CONTROL, USER)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _unigram(model) if model.algorithm == UNIGRAM else _bpe(model),
    }


def roles(model: SentencePieceModel) -> dict[str, str]:
    """Special tokens by role."""
    names = {"unk": "unk_token", "bos": "bos_token", "eos": "eos_token", "pad": "pad_token"}
    return {
        names[name]: model.pieces[number].text
        for name, number in model.special.items()
        if 0 <= number < len(model.pieces)
    }


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.character_map:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.character_map).decode()})
    if model.single_spaces:
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        if not model.has_user_symbols:  # a part of a text may well begin or end with a space
            ends = rf"\A |[ {SPACE}]+\z"
            steps.append({"type": "Replace", "pattern": {"Regex": ends}, "content": ""})
    if model.space_in_front and not model.has_user_symbols:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return steps


def _cut_open(texts: Sequence[str]) -> str:
    """A pattern for the first character of any of the texts, where the whole text stands."""
    rest: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        byte = re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        rest[text[0]].append("0x[0-9A-F]{2}>" if byte else re.escape(text[1:]))
    parts = (f"{re.escape(first)}(?={'|'.join(dict.fromkeys(ends))})" for first, ends in rest.items())
    return "|".join(parts)


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.special["unk"],
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.special["unk"]].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: number for number, piece in enumerate(model.pieces)},
        "merges": _merges(model.pieces) if model.algorithm == BPE else [],
    }


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
    """Every way to make a piece of two others, best piece first: SentencePiece joins whatever scores best."""
    number = {piece.text: place for place, piece in enumerate(pieces) if piece.kind in (NORMAL, USER, UNUSED)}
    found = []
    for text, place in number.items():
        pairs = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        ways = sorted((number[a], number[b], a, b) for a, b in pairs if a in number and b in number)
        found += [(-pieces[place].score, place, a, b) for _, _, a, b in ways]
    found.sort(key=lambda way: way[:2])
    return [[left, right] for _, _, left, right in found]


def _parse(data: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    for number, value in _fields(data):
        if number == 1:
            model.pieces.append(_piece(_bytes(value)))
        elif number == 2:
            _read_trainer(_bytes(value), model)
        elif number == 3:
            _read_normalizer(_bytes(value), model)
    return model


def _piece(data: bytes) -> Piece:
    found = dict(_fields(data))
    return Piece(_bytes(found.get(1, b"")).decode(), float(found.get(2, 0.0)), int(found.get(3, NORMAL)))


def _read_trainer(data: bytes, model: SentencePieceModel) -> None:
    found = dict(_fields(data))
    model.algorithm = int(found.get(3, UNIGRAM))
    model.space_follows = bool(found.get(24, 0))
    model.byte_fallback = bool(found.get(35, 0))
    for name, number in {"unk": 40, "bos": 41, "eos": 42, "pad": 43}.items():
        if number in found:
            value = int(found[number])
            model.special[name] = value - (1 << 64) if value >> 63 else value  # -1 is written as 2^64 - 1


def _read_normalizer(data: bytes, model: SentencePieceModel) -> None:
    found = dict(_fields(data))
    model.character_map = _bytes(found.get(2, b""))
    model.space_in_front = bool(found.get(3, 1))
    model.single_spaces = bool(found.get(4, 1))
    model.mark_spaces = bool(found.get(5, 1))


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is of the wrong kind")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of one message: whole numbers, floats or bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of unknown kind {kind}")
        part = data[place : place + length]
        if len(part) != length:
            raise ValueError("it was cut short")
        place += length
        yield tag >> 3, part if kind == 2 else struct.unpack("<d" if kind == 1 else "<f", part)[0]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(data):
            raise ValueError("it was cut short")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number is too long")
