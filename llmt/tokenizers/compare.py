"""several tokenizers, one text -> one row of numbers for each."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmt.errors import DataError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.inspect import TokenizerReport, inspect_tokenizer


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tokenizer on the text of all.

    Attributes:
        name: What it was called.
        vocab_size: Ids of the tokenizer.
        tokens: Ids that the text becomes.
        characters_per_token: Spaces included.
        bytes_per_token: Spaces included.
        tokens_per_word: 0 where there is no word.
        unknown_share: Part of the tokens that is the unknown token, 0 to 1.
        roundtrip: Whether decoding gives the text back.
        vocabulary_used: Part of the vocabulary that occurs in the text, 0 to 1.
    """

    name: str
    vocab_size: int
    tokens: int
    characters_per_token: float
    bytes_per_token: float
    tokens_per_word: float
    unknown_share: float
    roundtrip: bool
    vocabulary_used: float


def compare_tokenizers(tokenizers: Mapping[str, Tokenizer], text: str) -> list[Comparison]:
    """Measure every tokenizer on the same text.

    Raises:
        DataError: A tokenizer makes no token of the text; the message names it.
    """
    return [compared(name, measure_named(name, tokenizer, text)) for name, tokenizer in tokenizers.items()]


def measure_named(name: str, tokenizer: Tokenizer, text: str) -> TokenizerReport:
    """The report of a tokenizer.

    Raises:
        DataError: It makes no token of the text; the message names it.
    """
    try:
        return inspect_tokenizer(tokenizer, text)
    except DataError as error:
        raise DataError(f"{name}: {error.message}", error.hint) from error


def compared(name: str, report: TokenizerReport) -> Comparison:
    """The row of a report."""
    return Comparison(
        name=name,
        vocab_size=report.vocab_size,
        tokens=report.tokens,
        characters_per_token=report.characters_per_token,
        bytes_per_token=report.bytes_per_token,
        tokens_per_word=report.tokens_per_word,
        unknown_share=report.unknown_share,
        roundtrip=report.roundtrip,
        vocabulary_used=report.vocabulary_used,
    )
