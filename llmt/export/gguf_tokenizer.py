"""tokenizer.json -> the vocabulary of a GGUF file, where llama.cpp reads every text as the tokenizer does.

llama.cpp knows a tokenizer by the name of its split, and has its own code behind each name (ggml-org/llama.cpp,
src/llama-vocab.cpp). What that code would do in another way is refused here.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from llmt.errors import MismatchError, ModelFileError
from llmt.tokenizers.bytelevel import BYTE_CHARACTERS, to_bytes
from llmt.tokenizers.files import CONFIG_FILE, TOKENIZER_FILE, TokenizerParts, default_template, read_parts
from llmt.tokenizers.pretokenize import GPT2_SPLIT, GPT4_SPLIT, Split, split_words

_HINT = "train one that llama.cpp knows: llmt tokenizer train FILES --algo bpe"

_STYLES: dict[str, Split] = {"llama-bpe": "gpt4", "gpt-2": "gpt2"}
_NAMES = {GPT4_SPLIT: "llama-bpe", GPT2_SPLIT: "gpt-2"}
# By these names llama.cpp takes a word that stands in the vocabulary whole, whatever the merges make of it.
_WHOLE_WORDS = ("llama-bpe",)
# Tokens that llama.cpp knows by their text to end what is generated.
_KNOWN_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>"),
    *("<|end_of_text|>", "</s>", "<eos>"),
)
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "unk_token": "unk"}


class TokenType(IntEnum):
    """What a token is, in the numbers of GGUF."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says about a tokenizer.

    Attributes:
        pre: llama.cpp's name of the split.
        tokens: The pieces by id; as many as the model has rows.
        types: What each of them is.
        merges: Two pieces each, with a space between; the first is the most urgent.
        ids: Ids by role: `bos`, `eos`, and where there are any `pad`, `unk`, `eot`, `eom`.
        add_bos: Whether a text begins with `bos` where a program asks for the special tokens.
        add_eos: Whether it ends with `eos` then.
        chat_template: Text of the template; None without one.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None


def read_gguf_tokenizer(directory: Path, vocab_size: int, ends: Collection[int]) -> GgufTokenizer:
    """The tokenizer of a model directory, for a GGUF file.

    Args:
        directory: Holds tokenizer.json.
        vocab_size: Number of tokens V of the model; ids that the tokenizer lacks become unused tokens.
        ends: Ids that end what is generated, besides the tokenizer's own.

    Raises:
        ModelFileError: There is no tokenizer, it is damaged, or llama.cpp would read texts in another way.
        MismatchError: The tokenizer has more tokens than the model.
    """
    parts = read_parts(directory)
    spec = json.loads(parts.backend.to_str())
    where = directory / TOKENIZER_FILE
    pre = _split_name(spec["pre_tokenizer"])
    if problem := _model_problem(spec) or _split_problem(spec, pre) or _added_problem(spec, _STYLES.get(pre, "gpt4")):
        raise ModelFileError(f"{where}: {problem}", _HINT)
    if piece := _unreachable(parts, spec, pre):
        raise ModelFileError(f"{where}: its merges do not lead to {piece!r}, and llama.cpp does as if they did", _HINT)
    tokens, types = _token_list(spec)
    if len(tokens) > vocab_size:
        raise MismatchError(
            f"{where}: {len(tokens)} tokens, and the model has {vocab_size}", "copy the model's own tokenizer"
        )
    ids = _role_ids(parts, tokens, directory)
    add_bos, add_eos = _framing(parts, ids, where)
    template = parts.chat_template or default_template(parts.config.get("chat_template"))
    if template and "bos" not in ids and "bos_token" in template:
        template = "{%- set bos_token = '' -%}" + template  # llama.cpp would write the token that stands in for it
    ids = {"bos": ids["eos"], **ids, **_further_ends(ends, ids["eos"], tokens, where)}
    unused = _unused(len(tokens), vocab_size, set(tokens))
    return GgufTokenizer(
        pre=pre,
        tokens=(*tokens, *unused),
        types=(*types, *(TokenType.UNUSED for _ in unused)),
        merges=tuple(" ".join(_pair(merge)) for merge in spec["model"]["merges"]),
        ids=ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=template,
    )


def _steps(node: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a part that is none, one, or a sequence of them."""
    if node is not None and node["type"] == "Sequence":
        for child in node[key]:
            yield from _steps(child, key)
    elif node is not None:
        yield node


def _split_name(node: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for a pre-tokenizer; empty where it has none."""
    match list(_steps(node, "pretokenizers")):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return "gpt-2"
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return _NAMES.get(pattern, "")
    return ""


def _model_problem(spec: Mapping[str, Any]) -> str | None:
    """What in the model llama.cpp has no words for, or does in another way."""
    model = spec["model"]
    if model["type"] != "BPE":
        return f"a {model['type']} tokenizer; of those that llmt trains llama.cpp reads BPE"
    added = {token["content"] for token in spec["added_tokens"]}
    bytes_ = set(BYTE_CHARACTERS)
    foreign = next((piece for piece in model["vocab"] if not bytes_.issuperset(piece) and piece not in added), None)
    if not bytes_ <= model["vocab"].keys() or foreign is not None:
        return "its pieces are not written in bytes, as llama.cpp's BPE needs them"
    if not model["merges"]:
        return "it has no merges, and llama.cpp reads no BPE without them"
    if any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return "it drops merges at random, or marks the parts of words, which llama.cpp does not"
    return None


def _split_problem(spec: Mapping[str, Any], pre: str) -> str | None:
    """What happens to a text before its words are merged, or after, that llama.cpp does in another way."""
    if normalizers := [step["type"] for step in _steps(spec["normalizer"], "normalizers")]:
        return f"its normalizer {normalizers[0]} changes a text first, which llama.cpp does not"
    if any(step.get("add_prefix_space") for step in _steps(spec["pre_tokenizer"], "pretokenizers")):
        return "it puts a space before a text, which llama.cpp's BPE does not"
    if not pre:
        return "it splits a text into words in another way than GPT-2's and GPT-4's, which llama.cpp knows by name"
    if [step["type"] for step in _steps(spec["decoder"], "decoders")] != ["ByteLevel"]:
        return "it changes what it decodes, which llama.cpp does not"
    return None


def _added_problem(spec: Mapping[str, Any], style: Split) -> str | None:
    """Added tokens that llama.cpp would find in other places of a text."""
    contents = [token["content"] for token in spec["added_tokens"]]
    begins: dict[str, str] = {}
    for token in spec["added_tokens"]:
        content = token["content"]
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            return f"its token {content!r} takes spaces with it, or needs them, which llama.cpp does not do"
        if "\0" in content:
            return f"its token {content!r} holds a zero byte"
        if token["special"] and _is_word(content, style):
            return f"its special token {content!r} is a word, and llama.cpp would read it out of any text"
        begins |= {content[:end]: content for end in range(1, len(content))}
    for content in contents:
        for start in range(1, len(content)):
            other = begins.get(content[start:])
            if other is not None and other != content:
                return f"its tokens {content!r} and {other!r} overlap, and llama.cpp takes the longer one first"
    return None


def _is_word(piece: str, style: Split) -> bool:
    """Whether a piece, byte for byte, can be a whole word of a text."""
    try:
        text = to_bytes(piece).decode()
    except UnicodeDecodeError:
        return False
    return split_words(text, style) == [text]


def _unreachable(parts: TokenizerParts, spec: Mapping[str, Any], pre: str) -> str | None:
    """A word of the vocabulary that comes about by merging alone in one of the two programs."""
    model = spec["model"]
    if model["ignore_merges"] == (pre in _WHOLE_WORDS):
        return None
    merging = type(parts.backend).from_str(json.dumps({**spec, "model": {**model, "ignore_merges": False}})).model
    added = {token["content"] for token in spec["added_tokens"]}
    for piece, token_id in model["vocab"].items():
        if piece not in added and _is_word(piece, _STYLES[pre]):
            found = merging.tokenize(piece)
            if [token.id for token in found] != [token_id]:
                return str(piece)
    return None


def _token_list(spec: Mapping[str, Any]) -> tuple[list[str], list[TokenType]]:
    """Pieces by id, which `read_parts` has checked to be without holes, and what they are."""
    added = {token["content"]: token for token in spec["added_tokens"]}
    ids = {**spec["model"]["vocab"], **{content: token["id"] for content, token in added.items()}}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = {
        content: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for content, token in added.items()
    }
    return tokens, [kinds.get(token, TokenType.NORMAL) for token in tokens]


def _unused(begin: int, end: int, taken: Collection[str]) -> list[str]:
    """Names for ids that no text has, each another."""
    names = [f"[PAD{number}]" for number in range(begin, end)]
    return [f"{name}_" if name in taken else name for name in names]


def _role_ids(parts: TokenizerParts, tokens: Sequence[str], directory: Path) -> dict[str, int]:
    if "eos_token" not in parts.special:
        raise ModelFileError(f"{directory / CONFIG_FILE}: names no end-of-text token", 'add "eos_token" to it')
    return {_ROLES[role]: tokens.index(text) for role, text in parts.special.items() if role in _ROLES}


def _framing(parts: TokenizerParts, ids: Mapping[str, int], where: Path) -> tuple[bool, bool]:
    """Whether the tokenizer itself puts `bos` before a text, and `eos` after it."""
    text = parts.backend.encode("a", add_special_tokens=False).ids
    framed = parts.backend.encode("a", add_special_tokens=True).ids
    before, after = [ids["bos"]] if "bos" in ids else [], [ids["eos"]]
    for bos, eos in ((False, False), (True, False), (False, True), (True, True)):
        if framed == [*(before if bos else ()), *text, *(after if eos else ())]:
            return bos, eos
    raise ModelFileError(f"{where}: it puts other tokens around a text than llama.cpp can", _HINT)


def _further_ends(ends: Collection[int], eos: int, tokens: Sequence[str], where: Path) -> dict[str, int]:
    """Roles for tokens that end a generation, where llama.cpp does not know them by their text."""
    further = [end for end in ends if end != eos and 0 <= end < len(tokens) and tokens[end] not in _KNOWN_ENDS]
    if len(further) > 2:
        named = ", ".join(repr(tokens[end]) for end in further)
        raise ModelFileError(f"{where.parent}: it stops at {named}; a GGUF file names two", "shorten eos_token_id")
    return dict(zip(("eot", "eom"), further, strict=False))


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Both parts of a merge, in either spelling of the library."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
