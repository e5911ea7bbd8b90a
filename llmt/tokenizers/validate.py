"""bytes of a tokenizer.json -> the same parsed, with nothing in it that can be seen to do harm.

The Rust library trusts its input: an id of 4 thousand million allocates that much, a fixed padding aborts the
process, nested replacements grow without end. What is checked here is checked before the library sees the
file. What only a run can show is left to `trial`, and `is_harmless` says which files need none.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from llmt.errors import ModelFileError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS
from llmt.tokenizers.pretokenize import PATTERNS

MAX_FILE_BYTES = 200_000_000
MAX_PATTERN_CHARACTERS = 4096
MAX_STEPS = 64
MAX_GROWTH = 4096

_STEPS = {
    "normalizer": {
        *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Lowercase", "Strip", "StripAccents"),
        *("BertNormalizer", "ByteLevel", "Replace", "Prepend", "Sequence"),
    },
    "pre_tokenizer": {
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace"),
        *("Punctuation", "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
    },
    "decoder": {
        *("BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"),
        "WordPiece",
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
}
_CHILDREN = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "decoder": "decoders",
    "post_processor": "processors",
}
_MODEL_KEYS = {
    "BPE": {
        *("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk"),
        *("byte_fallback", "ignore_merges", "vocab", "merges"),
    },
    "WordPiece": {"type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"},
    "WordLevel": {"type", "unk_token", "vocab"},
    "Unigram": {"type", "unk_id", "vocab", "byte_fallback"},
}
_CUT = re.compile(r"\[\\s\\S\]\{1,[1-9][0-9]{0,4}\}")
# One class of characters: whatever stands in it, it takes one character and is done.
_CLASS = re.compile(r"\[\^?(?:\\x[0-9a-f]{2}|[^\[\]\\&^])+\]")
_ANCHORED = re.compile(r"\^(\\?[!-/:-@\[-`{-~]){1,16}")


def parse_tokenizer(data: bytes, where: str) -> dict[str, Any]:
    """Parse a tokenizer.json, drop its padding and truncation, and check what the library would take on trust.

    Args:
        data: The file's bytes.
        where: The file's name, for messages.

    Raises:
        ModelFileError: Not JSON, not a tokenizer, or one that could do harm.
    """
    spec = parse_object(data, where)
    spec |= {"padding": None, "truncation": None}  # settings of whoever saved it; a fixed one can abort the process
    try:
        _name_model(spec["model"])
        problem = _id_problem(spec) or _model_problem(spec["model"]) or _step_problem(spec)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _refusal(where, f"a part is missing or of the wrong kind ({error!r})") from error
    if problem:
        raise _refusal(where, problem)
    return spec


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from bytes. A key that stands twice is refused, since two readers may each take another.

    Raises:
        ModelFileError: The bytes are no JSON object, or too many.
    """
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(where, f"{len(data)} bytes, more than {MAX_FILE_BYTES}")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refusal(where, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _refusal(where, "not a JSON object")
    return value


def is_harmless(spec: Mapping[str, Any]) -> bool:
    """Whether a file that `parse_tokenizer` passed needs no trial: every part of it is known to be cheap.

    That is true of what llmt itself writes, and decided by the parts alone, never by what the file says of
    itself: no pattern but those that llmt writes, no replacement in the normalizer, no setting out of bounds.
    """
    try:
        return (
            spec.keys() <= {"version", "added_tokens", "model", "padding", "truncation", *_STEPS}
            and spec.get("version") == "1.0"
            and spec.get("normalizer") in (None, {"type": "NFC"})
            and all(_is_known_cut(step) for step in _flat(spec, "pre_tokenizer"))
            and _is_known_decoder(_flat(spec, "decoder"))
            and spec.get("post_processor") is None
            and all(_is_known_added(token) for token in spec["added_tokens"])
            and _is_known_model(spec["model"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} stands twice")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _refusal(where: str, why: str) -> ModelFileError:
    return ModelFileError(f"{where}: {why}", "copy or train the tokenizer again")


def _name_model(model: dict[str, Any]) -> None:
    """Fill in the type, which the library's oldest files leave out."""
    if "type" not in model:
        by_part = {"merges": "BPE", "max_input_chars_per_word": "WordPiece", "unk_id": "Unigram"}
        model["type"] = next((kind for part, kind in by_part.items() if part in model), "WordLevel")


def _id_problem(spec: Mapping[str, Any]) -> str | None:
    """Ids must be what the library will make of them: the model's 0 to n-1, then the added tokens in order."""
    vocab: Any = spec["model"]["vocab"]
    unigram = spec["model"]["type"] == "Unigram"
    if type(vocab) is not (list if unigram else dict):
        return "the vocabulary is of the wrong kind"
    pieces = _numbered(vocab)
    if not pieces:
        return "the vocabulary is empty"
    if len(pieces) != len(vocab):
        return "a piece stands twice in the vocabulary"
    if set(map(type, pieces)) != {str} or set(map(type, pieces.values())) != {int}:
        return "a piece is no text, or an id is not a whole number"
    if sorted(pieces.values()) != list(range(len(pieces))):
        wrong = sorted(pieces.values())
        return f"the ids of {len(pieces)} pieces must be 0 to {len(pieces) - 1}, and go from {wrong[0]} to {wrong[-1]}"
    return _added_problem(spec, pieces)


def _added_problem(spec: Mapping[str, Any], pieces: Mapping[str, int]) -> str | None:
    size = len(pieces)
    further: set[str] = set()
    for token in spec.get("added_tokens") or ():
        content = token["content"]
        if type(content) is not str or not content or type(token["id"]) is not int or content in further:
            return f"the added token {content!r} is empty, stands twice or has no whole number as id"
        expected = pieces.get(content, size)
        if token["id"] != expected:
            return f"the added token {content!r} has id {token['id']}, and the library would give it {expected}"
        further.add(content)
        size = max(size, expected + 1)
    for step in _walk(spec.get("post_processor"), "processors"):
        if any(type(number) is not int or not 0 <= number < size for number in _processor_ids(step)):
            return "the post-processor adds an id that the vocabulary lacks"
    return None


def _numbered(vocab: Any) -> dict[str, int]:
    """Piece to id; a unigram model lists its pieces in order, with scores."""
    return vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}


def _processor_ids(step: Mapping[str, Any]) -> Iterator[Any]:
    special = step.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        yield from token["ids"]
    for role in ("sep", "cls"):
        if step.get(role) is not None:
            yield step[role][1]


def _model_problem(model: Mapping[str, Any]) -> str | None:
    kind, vocab = model["type"], model["vocab"]
    if kind not in _MODEL_KEYS:
        return f"unknown model type {kind!r}"
    if kind == "Unigram":
        if not all(type(score) in (int, float) and math.isfinite(score) for _, score in vocab):
            return "a score is not a finite number"
        unknown = model.get("unk_id")
        if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(vocab)):
            return "unk_id is not an id of the vocabulary"
    return _merge_problem(model, vocab) if kind == "BPE" else None


def _merge_problem(model: Mapping[str, Any], vocab: Mapping[str, int]) -> str | None:
    """A merge of pieces that do not exist would make the library panic."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or ():
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left not in vocab or right not in vocab or left + right.removeprefix(prefix) not in vocab:
            return f"the merge of {left!r} and {right!r} is not in the vocabulary"
    return None


def _step_problem(spec: Mapping[str, Any]) -> str | None:
    for part, allowed in _STEPS.items():
        growth = 1
        for number, step in enumerate(_walk(spec.get(part), _CHILDREN[part])):
            if number >= MAX_STEPS:
                return f"{part} has more than {MAX_STEPS} steps"
            if problem := _one_step_problem(step, part, allowed):
                return problem
            if step["type"] in ("Replace", "Prepend"):
                growth *= max(1, len(step.get("content") or step.get("prepend") or ""))
        if growth > MAX_GROWTH:
            return f"the replacements in {part} can make a text more than {MAX_GROWTH} times as long"
    return None


def _one_step_problem(step: Mapping[str, Any], part: str, allowed: Collection[str]) -> str | None:
    if step["type"] not in allowed:
        return f"unknown {part} type {step['type']!r}"
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and any(_is_too_long(text) for text in pattern.values()):
        return f"a pattern in {part} is longer than {MAX_PATTERN_CHARACTERS} characters"
    if step["type"] == "FixedLength" and not 0 < step["length"] <= MAX_PATTERN_CHARACTERS:
        return f"{part} cuts into parts of {step['length']} characters"
    return None


def _is_too_long(pattern: str) -> bool:
    return len(pattern) > MAX_PATTERN_CHARACTERS and not _CLASS.fullmatch(pattern)


def _walk(node: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """A step and, for a sequence, everything in it."""
    if node is None:
        return
    yield node
    for child in node.get(key) or ():
        yield from _walk(child, key)


def _flat(spec: Mapping[str, Any], part: str) -> Sequence[Mapping[str, Any]]:
    """The steps of a part that is one step or one sequence of steps."""
    node, key = spec.get(part), _CHILDREN[part]
    if node is None:
        return ()
    return node[key] if node.keys() == {"type", key} and node["type"] == "Sequence" else (node,)


def _is_known_cut(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        flags = [step[name] for name in ("add_prefix_space", "trim_offsets", "use_regex")]
        return len(step) == 4 and set(map(type, flags)) == {bool}
    return (
        step.keys() == {"type", "pattern", "behavior", "invert"}
        and step["type"] == "Split"
        and step["behavior"] in ("Isolated", "Removed")
        and type(step["invert"]) is bool
        and _is_known_pattern(**step["pattern"])
    )


def _is_known_pattern(String: str = "", Regex: str = "") -> bool:
    if String:
        return not Regex and len(String) == 1
    return Regex in PATTERNS.values() or bool(_CUT.fullmatch(Regex) or _CLASS.fullmatch(Regex))


def _is_known_decoder(steps: Sequence[Mapping[str, Any]]) -> bool:
    kinds = [step["type"] for step in steps]
    if kinds == ["WordPiece"]:
        return steps[0].keys() == {"type", "prefix", "cleanup"} and len(steps[0]["prefix"]) <= 16
    if kinds == ["Replace", "ByteLevel"]:
        pattern = steps[0]["pattern"]
        return pattern.keys() == {"Regex"} and bool(_ANCHORED.fullmatch(pattern["Regex"])) and not steps[0]["content"]
    return kinds in ([], ["ByteLevel"])


def _is_known_added(token: Mapping[str, Any]) -> bool:
    return (
        token.keys() == {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
        and token["special"] is True
        and not any(token[name] is not False for name in ("single_word", "lstrip", "rstrip", "normalized"))
    )


def _is_known_model(model: Mapping[str, Any]) -> bool:
    kind = model["type"]
    if model.keys() != _MODEL_KEYS[kind]:
        return False
    if kind == "BPE":
        off = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        flags = [model[name] for name in ("fuse_unk", "ignore_merges")]
        return (
            not any(model[name] for name in off) and model["byte_fallback"] is False and set(map(type, flags)) == {bool}
        )
    if kind == "WordPiece":
        length = model["max_input_chars_per_word"]
        known = model["unk_token"] in model["vocab"] and len(model["continuing_subword_prefix"]) <= 16
        return known and type(length) is int and 0 < length <= 100_000
    if kind != "Unigram" or model["byte_fallback"] is not False:
        return False
    # Without an unknown token the library panics over a character that no piece spells.
    return model["unk_id"] is not None or {piece for piece, _ in model["vocab"]}.issuperset(BYTE_CHARACTERS)
