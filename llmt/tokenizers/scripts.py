"""text -> the script of every character, and what each script costs in tokens.

The `regex` library knows Unicode's scripts; nothing of its tables stands here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

# In this order: the first class that a character belongs to is its script. Digits of every script are digits,
# pictographs from U+2600 on are emoji, and the prolongation marks of kana are kana.
_CLASSES = {
    "space": r"\s",
    "digits": r"\p{Nd}",
    "emoji": r"[\p{Emoji_Presentation}[\p{Extended_Pictographic}&&[\u2600-\U0010FFFF]]]",
    "Latin": r"\p{Script=Latin}",
    "Cyrillic": r"\p{Script=Cyrillic}",
    "Greek": r"\p{Script=Greek}",
    "Hebrew": r"\p{Script=Hebrew}",
    "Arabic": r"\p{Script=Arabic}",
    "Han": r"\p{Script=Han}",
    "kana": r"[\p{Script=Hiragana}\p{Script=Katakana}\u30FC\uFF70]",
    "Hangul": r"\p{Script=Hangul}",
    "Devanagari": r"\p{Script=Devanagari}",
    "Thai": r"\p{Script=Thai}",
    "punctuation": r"[\p{P}\p{S}]",
    "other": r"\p{Any}",
}
SCRIPTS = tuple(_CLASSES)
_SPACE = SCRIPTS.index("space")
_OTHER = SCRIPTS.index("other")
_CODES = {script: bytes([code]) for code, script in enumerate(SCRIPTS)}

# Marks and joiners without a script of their own belong to the character before them.
_CHARACTER = regex.compile(
    "(?V1)" + "|".join(rf"(?P<{name}>{chars})\p{{Script=Inherited}}*" for name, chars in _CLASSES.items())
)


@dataclass(frozen=True, slots=True)
class ScriptShare:
    """What one script has in a text.

    Attributes:
        script: One of `SCRIPTS`; `punctuation` includes symbols.
        characters: Characters of the text in this script.
        tokens: Tokens whose first visible character is in this script; those without one are `space`.
        covered: Characters of any script that these tokens cover, such as the space before a word. A character
            of several tokens counts for the first of them.
        characters_per_token: `covered` over `tokens`; None without tokens.
        unknown_share: Part of these tokens that is the unknown token, 0 to 1; None without tokens.
    """

    script: str
    characters: int
    tokens: int
    covered: int
    characters_per_token: float | None
    unknown_share: float | None


def script_codes(text: str) -> bytes:
    """For each character the place of its script in `SCRIPTS`."""
    codes = bytearray()
    for found in _CHARACTER.finditer(text):
        codes += _CODES[found.lastgroup] * (found.end() - found.start())
    return bytes(codes)


def measure_scripts(text: str, spans: Sequence[tuple[int, int]], unknown: Iterable[bool]) -> list[ScriptShare]:
    """The share of every script in a text, the one with most characters first; scripts without any are left out.

    The characters add up to those of the text, and the tokens to all tokens.

    Args:
        text: The text.
        spans: For each token the characters it covers, as (start, end).
        unknown: For each token whether it is the unknown token.
    """
    codes = script_codes(text)
    tokens, covered, unknowns = ([0] * len(SCRIPTS) for _ in range(3))
    reached = 0
    for (start, end), is_unknown in zip(spans, unknown, strict=True):
        code = _first_visible(codes[start:end])
        tokens[code] += 1
        unknowns[code] += is_unknown
        covered[code] += max(0, end - max(start, reached))
        reached = max(reached, end)
    shares = [
        ScriptShare(
            script,
            codes.count(code),
            tokens[code],
            covered[code],
            covered[code] / tokens[code] if tokens[code] else None,
            unknowns[code] / tokens[code] if tokens[code] else None,
        )
        for code, script in enumerate(SCRIPTS)
    ]
    shares.sort(key=lambda share: -share.characters)
    return [share for share in shares if share.characters or share.tokens]


def _first_visible(codes: bytes) -> int:
    """The first script that is no space; `space` where all is space, `other` where nothing is covered."""
    rest = codes.lstrip(bytes([_SPACE]))
    if rest:
        return rest[0]
    return _SPACE if codes else _OTHER
