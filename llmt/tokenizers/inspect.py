"""tokenizer, text -> what the one makes of the other, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmt.errors import DataError
from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.pretokenize import split_words
from llmt.tokenizers.spans import Segment, longest_labels, segment

PROBES = ("1234567", "3.14", "  x", "\t\tx", "a\n\nb", "    return")
"""What tokenizers treat most differently: digits, and white space inside and before words."""


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """How a tokenizer cuts one text.

    Attributes:
        vocab_size: Ids of the tokenizer.
        characters: Length of the text in characters.
        bytes: Length of the text in UTF-8 bytes.
        words: Words of the text (letters, marks and digits together; other signs alone).
        tokens: Ids that the text becomes.
        characters_per_token: Spaces included.
        bytes_per_token: Spaces included.
        tokens_per_word: `tokens` over `words`; 0 where there is no word.
        unknown_share: Part of the tokens that is the unknown token, 0 to 1.
        vocabulary_used: Part of the vocabulary that occurs in the text, 0 to 1.
        roundtrip: Whether decoding gives the text back.
        longest: The longest tokens that occur, in characters, longest first, as `label` writes them.
        segmentation: Every token as (piece, id), in order.
    """

    vocab_size: int
    characters: int
    bytes: int
    words: int
    tokens: int
    characters_per_token: float
    bytes_per_token: float
    tokens_per_word: float
    unknown_share: float
    vocabulary_used: float
    roundtrip: bool
    longest: list[str]
    segmentation: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Probe:
    """One short text, how it is cut, and whether it comes back.

    Attributes:
        text: The text.
        tokens: Its tokens.
        roundtrip: Whether decoding gives the text back.
    """

    text: str
    tokens: list[Segment]
    roundtrip: bool


def inspect_tokenizer(tokenizer: Tokenizer, text: str) -> TokenizerReport:
    """Measure `tokenizer` on `text`.

    Raises:
        DataError: A text without any token.
    """
    clean = well_formed(text)
    ids = tokenizer.encode(clean)
    if not ids:
        raise DataError("text: there is nothing in it to tokenize", "give some text")
    words = len(split_words(clean, "bert"))
    size = len(clean.encode())
    return TokenizerReport(
        vocab_size=tokenizer.vocab_size,
        characters=len(clean),
        bytes=size,
        words=words,
        tokens=len(ids),
        characters_per_token=len(clean) / len(ids),
        bytes_per_token=size / len(ids),
        tokens_per_word=len(ids) / words if words else 0.0,
        unknown_share=ids.count(tokenizer.unk_token_id) / len(ids) if tokenizer.unk_token_id is not None else 0.0,
        vocabulary_used=len(set(ids)) / tokenizer.vocab_size,
        roundtrip=_comes_back(tokenizer, clean, ids),
        longest=longest_labels(tokenizer, ids),
        segmentation=list(zip(tokenizer.tokens(ids), ids, strict=True)),
    )


def probe(tokenizer: Tokenizer, texts: Sequence[str] = PROBES) -> list[Probe]:
    """How short texts are cut, and whether they come back."""
    return [
        Probe(text, segment(tokenizer, text), _comes_back(tokenizer, text, tokenizer.encode(text))) for text in texts
    ]


def _comes_back(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> bool:
    return tokenizer.decode(ids, skip_special_tokens=False) == text
