"""tokenizer, text -> what the one makes of the other, as plain data."""

from dataclasses import dataclass

from llmt.errors import DataError
from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.pretokenize import split_words

LONGEST = 10


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
        longest: The longest pieces that occur, longest first.
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


def inspect_tokenizer(tokenizer: Tokenizer, text: str) -> TokenizerReport:
    """Measure `tokenizer` on `text`.

    Raises:
        DataError: A text without any token.
    """
    clean = well_formed(text)
    ids = tokenizer.encode(clean)
    if not ids:
        raise DataError("text: there is nothing in it to tokenize", "give some text")
    pieces = tokenizer.tokens(ids)
    words = len(split_words(clean, "bert"))
    size = len(clean.encode())
    longest = sorted(set(pieces), key=lambda piece: (-len(piece), piece))[:LONGEST]
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
        roundtrip=tokenizer.decode(ids, skip_special_tokens=False) == clean,
        longest=longest,
        segmentation=list(zip(pieces, ids, strict=True)),
    )
