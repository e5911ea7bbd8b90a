"""text -> ids of byte-level BPE by tiktoken, several times faster than by the `tokenizers` library.

The library merges a pair that its list of merges names; tiktoken merges any two neighbours that together are a
token, the one with the lowest id first. The two agree where each token comes from one merge, ids rise with the
merges, and the library makes each token of the token's own bytes. For if tiktoken merged two neighbours x and y
that no merge names, the library would have left them as they are in the text of that token as well: what happens
inside a stretch of text that two tokens cover does not depend on what stands around it. `rank_encoder` checks
the three conditions on the vocabulary.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import tokenizers

from llmt.tokenizers.bytelevel import BYTE_CHARACTERS, to_bytes
from llmt.tokenizers.pretokenize import GPT2_SPLIT, GPT4_SPLIT

# Letters, digits and white space are the same to both libraries here, whichever version of Unicode each knows:
# Latin, accents, Greek, Cyrillic, punctuation, kana, common Han characters and Hangul.
_STRANGE = re.compile(
    "[^\x00-\u024f\u0300-\u036f\u0391-\u03a1\u03a3-\u03ce\u0400-\u0481\u048a-\u04ff\u1e00-\u1eff\u2000-\u2064"
    "\u20a0-\u20bf\u2190-\u23fa\u2500-\u27bf\u3000-\u303f\u3041-\u3096\u3099-\u30ff\u4e00-\u9fa5\uac00-\ud7a3"
    "\uff01-\uff5e\U0001f300-\U0001f64f]"
)
# tiktoken's search of a pattern that looks ahead runs out of stack over endless white space.
_ENDLESS = re.compile(r"\s{1000}")
_OTHER_WAYS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


class RankEncoder:
    """Encodes as the tokenizer that it was made for.

    Args:
        pattern: Cuts text into words.
        ranks: The id of each token, by its bytes.
    """

    def __init__(self, pattern: str, ranks: Mapping[bytes, int]) -> None:
        import tiktoken

        encoding = tiktoken.Encoding("llmt", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={})
        self._encode = encoding.encode_ordinary

    def accepts(self, text: str) -> bool:
        """Whether both libraries cut the text alike."""
        return (text.isascii() or _STRANGE.search(text) is None) and _ENDLESS.search(text) is None

    def encode(self, text: str) -> list[int]:
        """Ids of a well-formed text that is accepted."""
        ids: list[int] = self._encode(text)
        return ids


def rank_encoder(backend: tokenizers.Tokenizer, spec: Mapping[str, Any]) -> RankEncoder | None:
    """The encoder for a tokenizer.json (parsed), or None where tiktoken is not installed or would differ."""
    pattern = _pattern(spec.get("pre_tokenizer"))
    if pattern is None or find_spec("tiktoken") is None or not _is_plain(spec):
        return None
    vocab: dict[str, int] = spec["model"]["vocab"]
    merges = spec["model"]["merges"]
    merged = ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    ids = [vocab[piece] for piece in merged]
    pieces = [*BYTE_CHARACTERS, *merged]
    if not vocab.keys() >= set(pieces) or ids != sorted(set(ids)):
        return None
    if ids and max(vocab[char] for char in BYTE_CHARACTERS) > ids[0]:
        return None
    if any([token.value for token in backend.model.tokenize(piece)] != [piece] for piece in pieces):
        return None
    return RankEncoder(pattern, {to_bytes(piece): vocab[piece] for piece in pieces})


def _is_plain(spec: Mapping[str, Any]) -> bool:
    """Whether it is byte-pair encoding and nothing else."""
    model = spec["model"]
    if model["type"] != "BPE" or spec.get("normalizer") is not None:
        return False
    if any(model.get(name) for name in _OTHER_WAYS):
        return False
    return all(token["special"] for token in spec["added_tokens"])


def _pattern(node: Mapping[str, Any] | None) -> str | None:
    """How a pre-tokenizer cuts text into words of bytes, where it is one that tiktoken can do."""
    steps = [] if node is None else node["pretokenizers"] if node["type"] == "Sequence" else [node]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    by_itself = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2_SPLIT if by_itself else None
    return _known_split(steps[0]) if len(steps) == 2 and not by_itself else None


def _known_split(step: Mapping[str, Any]) -> str | None:
    """The pattern of a step that cuts as GPT-2 or GPT-4 do and drops nothing."""
    if step["type"] != "Split" or (step["behavior"], step["invert"]) not in (("Isolated", False), ("Removed", True)):
        return None
    pattern: str | None = step["pattern"].get("Regex")
    return pattern if pattern in (GPT2_SPLIT, GPT4_SPLIT) else None
