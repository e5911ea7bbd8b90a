"""documents -> a table of words, in two stages.

First text is cut at spaces, which is cheap, and the parts are counted. A cut stands only where it changes no
word: before a space that follows a visible character no pattern of `pretokenize` matches on, or looks ahead.
Then the pattern runs over the different parts, those of equal count together.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from llmt.tokenizers.pretokenize import WordStyle, finder, visible_parts

PARTS = 1 << 18
"""Different parts held before they become words."""

# What the patterns say of ASCII, for the faster `re`.
_ASCII = {
    "gpt4": re.compile(
        r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        re.ASCII,
    ).findall,
    "gpt2": re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII).findall,
    "bert": re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]", re.ASCII).findall,
}
# These lines end where a match ends, whatever follows: a line feed of which no more white space with a line
# feed follows (GPT-4), or any white space after a visible character (GPT-2).
_LINES = {"gpt4": re.compile(r"\n(?=[ \t]*\S)"), "gpt2": re.compile(r"\n(?<=\S\n)")}
_SPACES = re.compile(r" (?<=\S )")
# White space to `str.split`, but signs to the patterns.
_SEPARATORS = re.compile(r"[\x1c-\x1f]")


class WordTable:
    """Counts blocks of documents.

    Args:
        style: Which pattern.
    """

    def __init__(self, style: WordStyle) -> None:
        self.style: WordStyle = style
        self._words: Counter[str] = Counter()
        self._whole: Counter[str] = Counter()  # parts as they are
        self._spaced: Counter[str] = Counter()  # parts after a space, which is left out

    def add(self, texts: list[str]) -> None:
        """Count some documents, or parts of one that end where no word is cut."""
        if self.style == "bert":
            block = "\n".join(texts)
            parts = visible_parts(block) if _SEPARATORS.search(block) else block.split()
            self._whole.update(parts)
        else:
            whole: list[str] = []
            spaced: list[str] = []
            cut = _cut_gpt4 if self.style == "gpt4" else _cut_gpt2
            for text in texts:
                cut(text, whole, spaced)
            self._whole.update(whole)
            self._spaced.update(spaced)
        if len(self._whole) + len(self._spaced) > PARTS:
            self.settle()

    def merge(self, words: dict[str, int]) -> None:
        """Add the words of another table."""
        self._words.update(words)

    def words(self) -> dict[str, int]:
        """The words so far and how often each occurs."""
        self.settle()
        return dict(self._words)

    def settle(self) -> None:
        """Turn the parts so far into words."""
        for parts, lead in ((self._whole, ""), (self._spaced, " ")):
            groups: defaultdict[int, list[str]] = defaultdict(list)
            for part, n in parts.items():
                groups[n].append(part)
            parts.clear()
            for n, group in groups.items():
                words = self._words_of(group, lead)
                if n == 1:
                    self._words.update(words)
                else:
                    for word, times in Counter(words).items():
                        self._words[word] += n * times

    def _words_of(self, parts: list[str], lead: str) -> Iterator[str]:
        """The words of all parts; those that end visibly can stand in one text, with a space between."""
        joined: list[str] = []
        rest: list[str] = []
        if self.style == "bert":
            joined = parts
        elif not lead:
            rest = parts
        else:
            for part in parts:
                (joined if part and not part[-1].isspace() else rest).append(part)
        find = finder(self.style)
        plain = [part for part in joined if part.isascii()]
        if plain:
            yield from _ASCII[self.style](lead + " ".join(plain))
        if len(plain) < len(joined):
            yield from find(lead + " ".join([part for part in joined if not part.isascii()]))
        for part in rest:
            yield from find(lead + part)


def _cut_gpt4(text: str, whole: list[str], spaced: list[str]) -> None:
    """Cut one document; a line feed stays with the line before it."""
    lines = _LINES["gpt4"].split(text)
    last = len(lines) - 1
    for number, line in enumerate(lines):
        parts = _parts(line)
        if number < last:
            parts[-1] += "\n"
        whole.append(parts[0])
        spaced += parts[1:]


def _cut_gpt2(text: str, whole: list[str], spaced: list[str]) -> None:
    """Cut one document; a line feed goes to the line after it."""
    for number, line in enumerate(_LINES["gpt2"].split(text)):
        parts = _parts(line)
        whole.append("\n" + parts[0] if number else parts[0])
        spaced += parts[1:]


def _parts(line: str) -> list[str]:
    """The line, cut before every space that follows a visible character; that space is left out."""
    body = line.lstrip(" ")
    if "  " in body or not body.isprintable():  # it has white space that is no single space
        return _SPACES.split(line)
    parts = body.split(" ")
    if len(body) < len(line):
        parts[0] = line[: len(line) - len(body)] + parts[0]
    return parts
