"""tokenizer, text -> which part of the vocabulary works, and which never can."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.spans import longest_labels, own_text

_COMMON_CHARACTERS = 24
_MOST_CONTEXTS = 200
_MOST_TRIALS = 60_000
_NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """The vocabulary of a tokenizer, seen from one text. `used` and `dead` add up to all ids.

    Attributes:
        used: Ids that occur in the text.
        dead: Ids that do not occur in the text.
        dead_share: `dead` over all ids, 0 to 1.
        dead_special: Dead ids that are special tokens, which no text brings forth.
        dead_examples: The longest dead tokens, in characters, as `label` writes them.
        checked: Dead ids whose own text was encoded to see whether it brings them forth, or whose bytes no text
            can hold.
        unchecked: Dead ids that were not: parts of characters, which are no text of their own, and those above
            the limit.
        reached: Checked ids that a text does bring forth.
        unreachable: Checked ids that came forth neither from their text alone nor from it after any of
            `contexts` other characters.
        unreachable_examples: The longest unreachable tokens.
        contexts: Characters that were tried before the text of a token.
        longest: The longest tokens of the vocabulary.
    """

    used: int
    dead: int
    dead_share: float
    dead_special: int
    dead_examples: list[str]
    checked: int
    unchecked: int
    reached: int
    unreachable: int
    unreachable_examples: list[str]
    contexts: int
    longest: list[str]


def measure_vocabulary(tokenizer: Tokenizer, text: str, ids: Sequence[int], limit: int) -> VocabularyReport:
    """Which tokens occur in a text, and which of the others could occur in some text.

    Args:
        tokenizer: Made `ids` of `text`.
        text: The text.
        ids: `tokenizer.encode(text)`.
        limit: Dead tokens to check at most; from more, evenly spaced ones are taken.
    """
    used = set(ids)
    size = tokenizer.vocab_size
    special = special_ids(tokenizer)
    data = {token_id: tokenizer.token_bytes(token_id) for token_id in range(size) if token_id not in special}
    dead = [token_id for token_id in data if token_id not in used]
    chosen = dead if len(dead) <= limit else [dead[number * len(dead) // limit] for number in range(limit)]
    impossible = {token_id for token_id in chosen if _NOT_IN_UTF8.intersection(data[token_id])}
    texts = {token_id: own for token_id in chosen if (own := _whole_text(data[token_id])) is not None}
    lost, tried = find_unreachable(tokenizer, texts, find_contexts(text, data.values()))
    checked = len(texts) + len(impossible)
    unreachable = lost | impossible
    return VocabularyReport(
        used=len(used),
        dead=size - len(used),
        dead_share=(size - len(used)) / size,
        dead_special=len(special - used),
        dead_examples=longest_labels(tokenizer, dead),
        checked=checked,
        unchecked=len(dead) - checked,
        reached=checked - len(unreachable),
        unreachable=len(unreachable),
        unreachable_examples=longest_labels(tokenizer, unreachable),
        contexts=tried,
        longest=longest_labels(tokenizer, data),
    )


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that decoding leaves out: special tokens, those without a role included."""
    ids = [[token_id] for token_id in range(tokenizer.vocab_size)]
    kept = tokenizer.decode_batch(ids, skip_special_tokens=True)
    whole = tokenizer.decode_batch(ids, skip_special_tokens=False)
    return {number for number, (some, every) in enumerate(zip(kept, whole, strict=True)) if every and not some}


def find_contexts(text: str, tokens: Iterable[bytes]) -> list[str]:
    """Characters to try before a token that only goes on with a word: common ones, and those of the vocabulary."""
    common = [char for char, _ in Counter(text).most_common(_COMMON_CHARACTERS)]
    single = [own for data in tokens if (own := _whole_text(data)) is not None and len(own) == 1]
    return list(dict.fromkeys((*common, *single)))[:_MOST_CONTEXTS]


def find_unreachable(tokenizer: Tokenizer, texts: Mapping[int, str], contexts: Sequence[str]) -> tuple[set[int], int]:
    """Ids that no encoding of their own text holds, neither alone nor after any of the contexts tried.

    Args:
        tokenizer: The tokenizer.
        texts: The texts of some ids.
        contexts: Texts to put before, the most promising first. Of many ids fewer are tried.

    Returns:
        The ids, and how many of the contexts were tried for each of them.
    """
    left = _not_met(tokenizer, texts, "")
    tried = trials = 0
    for context in contexts:
        if not left or trials > _MOST_TRIALS:
            break
        trials += len(left)
        tried += 1
        left = _not_met(tokenizer, left, context)
    return set(left), tried


def _not_met(tokenizer: Tokenizer, texts: Mapping[int, str], context: str) -> dict[int, str]:
    encoded = tokenizer.encode_batch([context + text for text in texts.values()])
    return {token_id: text for (token_id, text), ids in zip(texts.items(), encoded, strict=True) if token_id not in ids}


def _whole_text(data: bytes) -> str | None:
    """The text of a token's bytes, or None where they are no whole characters."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text and own_text(data) == text else None
