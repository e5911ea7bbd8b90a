"""text -> words: the patterns that cut text before any merging, and counting the words of a corpus."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import regex

Split = Literal["gpt4", "gpt2"]
WordStyle = Literal["gpt4", "gpt2", "bert"]

# The pattern of Llama 3 (meta-llama/llama3, tokenizer.py), which is that of GPT-4's cl100k_base
# (openai/tiktoken) without possessive quantifiers. llama.cpp knows it by the name "llama-bpe".
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The pattern of GPT-2 (openai/gpt-2, encoder.py).
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Words of every script, with their vowel signs and accents (\p{M}); any other visible character stands alone.
BERT_WORDS = r"[\p{L}\p{M}\p{N}]+|[^\s\p{L}\p{M}\p{N}]"

PATTERNS: dict[WordStyle, str] = {"gpt4": GPT4_SPLIT, "gpt2": GPT2_SPLIT, "bert": BERT_WORDS}

BLOCK_CHARACTERS = 4_000_000

# A piece of text that ends where a space or a tab follows a visible character. No pattern above matches
# across such a place, and none looks ahead across it, so cutting there first changes no word.
_CHUNK = re.compile(r"\s*\S+(?:[^\S \t]\s*\S*)*|\s+")
_CUT = re.compile(r"(?<=\S)[ \t]")


def count_words(texts: Iterable[str], style: WordStyle) -> dict[str, int]:
    """How often each word occurs, in order of first appearance in the blocks read.

    Two stages: whitespace-delimited chunks are counted first, which is cheap, and the pattern then runs once
    per different chunk of a block. Only one block of about `BLOCK_CHARACTERS` is held, next to the result.

    Args:
        texts: Documents. No word spans two of them.
        style: Which pattern; `bert` also brings the text into Unicode's NFC form.
    """
    words: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    held = 0
    for block in _blocks(texts):
        chunks.update(_CHUNK.findall(block))
        held += len(block)
        if held >= BLOCK_CHARACTERS:
            _count_chunks(chunks, style, words)
            chunks.clear()
            held = 0
    _count_chunks(chunks, style, words)
    return dict(words)


def split_words(text: str, style: WordStyle) -> list[str]:
    """The words of `text`, by the pattern of `style`."""
    words: list[str] = regex.findall(PATTERNS[style], normalized(text) if style == "bert" else text)
    return words


def normalized(text: str) -> str:
    """Unicode's composed form (NFC), so that one word has one spelling."""
    import unicodedata

    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _count_chunks(chunks: Counter[str], style: WordStyle, words: Counter[str]) -> None:
    for chunk, n in chunks.items():
        for word in split_words(chunk, style):
            words[word] += n


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones in parts that end where no word is cut."""
    for text in texts:
        start = 0
        while len(text) - start > BLOCK_CHARACTERS:
            cut = _CUT.search(text, start + BLOCK_CHARACTERS)
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:] if start else text
