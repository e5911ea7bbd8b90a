"""bytes of a tokenizer.json -> the same, known to be harmless.

The Rust library trusts its input: an id of 4 thousand million allocates that much, a fixed padding aborts the
process, nested replacements grow without end. What is checked here is checked before the library sees the
file.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmt.errors import ModelFileError

MAX_FILE_BYTES = 200_000_000
MAX_PATTERN_CHARACTERS = 4096
MAX_STEPS = 64
MAX_GROWTH = 4096

_MODELS = {"BPE", "WordPiece", "Unigram", "WordLevel"}
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
        *(
            "BPEDecoder",
            "ByteFallback",
            "ByteLevel",
            "CTC",
            "Fuse",
            "Metaspace",
            "Replace",
            "Sequence",
            "Strip",
        ),
        "WordPiece",
    },
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
}
_CHILDREN = ("normalizers", "pretokenizers", "decoders", "processors")


def parse_tokenizer(data: bytes, where: str) -> dict[str, Any]:
    """Parse a tokenizer.json and check everything that the library would take on trust.

    Args:
        data: The file's bytes.
        where: The file's name, for messages.

    Raises:
        ModelFileError: Not JSON, not a tokenizer, or one that could do harm.
    """
    spec = parse_object(data, where)
    try:
        problem = _problem(spec)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _refusal(where, f"a part is missing or of the wrong kind ({error!r})") from error
    if problem:
        raise _refusal(where, problem)
    return spec


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from bytes.

    Raises:
        ModelFileError: The bytes are no JSON object, or too many.
    """
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(where, f"{len(data)} bytes, more than {MAX_FILE_BYTES}")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _refusal(where, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _refusal(where, "not a JSON object")
    return value


def _refusal(where: str, why: str) -> ModelFileError:
    return ModelFileError(f"{where}: {why}", "copy or train the tokenizer again")


def _problem(spec: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong, or None."""
    for block in ("padding", "truncation"):
        if spec.get(block) is not None:
            return f"it has a {block!r} block, which must be null"
    model = spec["model"]
    kind = model.get("type")
    if kind not in _MODELS:
        return f"unknown model type {kind!r}"
    vocab = _vocabulary(model["vocab"])
    return _id_problem(vocab, spec) or _merge_problem(model, vocab) or _step_problem(spec)


def _vocabulary(vocab: Any) -> dict[str, int]:
    if isinstance(vocab, dict):
        return vocab
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def _id_problem(vocab: Mapping[str, int], spec: Mapping[str, Any]) -> str | None:
    model_ids = spec["model"]["vocab"]
    if len(vocab) != len(model_ids):
        return "a piece stands twice in the vocabulary"
    pieces = dict(vocab)
    for token in spec.get("added_tokens") or ():
        if pieces.setdefault(token["content"], token["id"]) != token["id"]:
            return f"the token {token['content']!r} has two ids"
    ids = list(pieces.values())
    if not ids:
        return "the vocabulary is empty"
    if not all(type(number) is int for number in ids):
        return "an id is not a whole number"
    if len(set(ids)) != len(ids):
        return "an id stands for two tokens"
    if min(ids) < 0 or max(ids) != len(ids) - 1:
        return f"the ids of {len(ids)} tokens must be 0 to {len(ids) - 1}, and go from {min(ids)} to {max(ids)}"
    for step in _walk(spec.get("post_processor")):
        if any(number not in range(len(ids)) for number in _processor_ids(step)):
            return "the post-processor adds an id that the vocabulary lacks"
    return None


def _processor_ids(step: Mapping[str, Any]) -> Iterator[int]:
    special = step.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        yield from token["ids"]
    for role in ("sep", "cls"):
        if step.get(role) is not None:
            yield step[role][1]


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
        for number, step in enumerate(_walk(spec.get(part))):
            if number >= MAX_STEPS:
                return f"{part} has more than {MAX_STEPS} steps"
            if step["type"] not in allowed:
                return f"unknown {part} type {step['type']!r}"
            pattern = step.get("pattern")
            if isinstance(pattern, dict) and any(len(text) > MAX_PATTERN_CHARACTERS for text in pattern.values()):
                return f"a pattern in {part} is longer than {MAX_PATTERN_CHARACTERS} characters"
            if step["type"] in ("Replace", "Prepend"):
                growth *= max(1, len(step.get("content") or step.get("prepend") or ""))
        if growth > MAX_GROWTH:
            return f"the replacements in {part} can make a text more than {MAX_GROWTH} times as long"
    return None


def _walk(node: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A step and, for a sequence, everything in it."""
    if node is None:
        return
    yield node
    for key in _CHILDREN:
        for child in node.get(key) or ():
            yield from _walk(child)
