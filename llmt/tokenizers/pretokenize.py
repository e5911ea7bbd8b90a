"""text -> words: the patterns that cut text before any merging."""

import unicodedata
from collections.abc import Callable
from functools import cache
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

# Characters are written out, not escaped: the pattern means the same to `regex` and to Oniguruma.
_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"[^\p{{P}}\p{{S}}\p{{Z}}\p{{C}}{_HAN}]"  # letters, marks and digits: what is left
_JOINERS = "\u200c\u200d"
_FLAG = "[\U0001f1e6-\U0001f1ff]{2}"
_KEYCAP = "[0-9#*]\ufe0f?\u20e3"
_ONTO = "[\\p{M}\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"  # accents, skin tones, tags of flags
_SIGN = rf"[^\s\p{{L}}\p{{M}}\p{{N}}]{_ONTO}"

# Words of every script with their vowel signs and accents, joined across U+200C and U+200D; each Han character
# is a word, as in BERT (google-research/bert, tokenization.py), because that script has no spaces; any other
# visible character stands alone with what goes onto it, and emoji joined by U+200D are one word.
BERT_WORDS = (
    rf"{_KEYCAP}|{_FLAG}|[{_HAN}]\p{{M}}*|{_LETTER}+(?:[{_JOINERS}]+{_LETTER}+)*|{_SIGN}(?:{_JOINERS[1]}{_SIGN})*"
)

PATTERNS: dict[WordStyle, str] = {"gpt4": GPT4_SPLIT, "gpt2": GPT2_SPLIT, "bert": BERT_WORDS}


def split_words(text: str, style: WordStyle) -> list[str]:
    """The words of `text`, by the pattern of `style`."""
    return finder(style)(text)


@cache
def finder(style: WordStyle) -> Callable[[str], list[str]]:
    """What `split_words` does, for one style."""
    find: Callable[[str], list[str]] = regex.compile(PATTERNS[style]).findall
    if style != "bert":
        return find
    return lambda text: find(normalized(text))


def visible_parts(text: str) -> list[str]:
    """What stands between white space, as the patterns understand it."""
    parts: list[str] = regex.findall(r"\S+", text)
    return parts


def normalized(text: str) -> str:
    """Unicode's composed form (NFC), so that one word has one spelling."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
