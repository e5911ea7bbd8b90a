"""word counts -> their segmentation, and what each merge changes in it; the Python engine's half of the work.

A symbol is written as one character (see `_character`), so a word is a string, a pair is a string of two, and
one merge in one word is one `str.split`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import add

Join = tuple[int, int, int, float]
"""Ids of the two halves, how often they met, and the score."""

_SURROGATES = 0xD800, 0x800


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is to do.

    Attributes:
        words: How often each word occurs.
        alphabet: Symbols in id order.
        prefix: The continuation prefix.
        levels: Least pair counts to consider, one after the other; the last is the floor.
        score: `likelihood` or `gain`.
        joins: Most merges wanted.
    """

    words: Mapping[str, int]
    alphabet: list[str]
    prefix: str
    levels: list[int]
    score: str
    joins: int

    @property
    def blocked(self) -> set[int]:
        """Ids that are never a left half."""
        return {number for number, symbol in enumerate(self.alphabet) if self.prefix.startswith(symbol)}


def symbol_id(character: str) -> int:
    """The id that a character stands for."""
    code = ord(character)
    return code if code < _SURROGATES[0] else code - _SURROGATES[1]


def _character(number: int) -> str:
    """The character of an id; the order of characters is that of ids."""
    return chr(number if number < _SURROGATES[0] else number + _SURROGATES[1])


class Segments:
    """The present segmentation of every word, the counts, and in which words each pair may stand.

    Pairs below the floor are not kept: a pair's count never rises after the merge that made it.

    Attributes:
        counts: Occurrences of each symbol.
        pairs: Occurrences of each pair of neighbours.
        total: Occurrences of all symbols.
    """

    def __init__(self, job: Job) -> None:
        self._floor = job.levels[-1]
        self._next = len(job.alphabet)
        self._frequencies = [n for word, n in job.words.items() if word]
        self._words = _written(job)
        self._blocked = {_character(number) for number in job.blocked}
        self.counts: dict[str, int] = {_character(number): 0 for number in range(len(job.alphabet))}
        self.pairs: dict[str, int] = {}
        self._where: dict[str, list[int]] = {}
        self._count()
        self.total = sum(self.counts.values())

    def _count(self) -> None:
        where: defaultdict[str, list[int]] = defaultdict(list)
        for index, word in enumerate(self._words):
            for pair in map(add, word, word[1:]):
                where[pair].append(index)
        counts, frequency = self.counts, self._frequencies.__getitem__
        for word, n in zip(self._words, self._frequencies, strict=True):
            counts[word[0]] += n
        for pair, places in where.items():
            n = sum(map(frequency, places))
            counts[pair[1]] += n  # whatever does not begin a word ends one pair
            if n >= self._floor and pair[0] not in self._blocked:
                self.pairs[pair] = n
                self._where[pair] = places

    def merge(self, pair: str) -> list[str]:
        """Join `pair` everywhere, left to right; returns the other pairs whose count changed or began."""
        new = _character(self._next)
        self._next += 1
        before, after, runs, joined = self._rewrite(pair, new)
        frequency = self._frequencies.__getitem__
        del self.pairs[pair]
        n = sum(map(frequency, joined))
        self.counts[pair[0]] -= n
        self.counts[pair[1]] -= n
        self.counts[new] = n
        self.total -= n
        changed: list[str] = []
        for symbol, places in before.items():
            n = sum(map(frequency, places))
            self._fall(symbol + pair[0], n, changed)
            if symbol not in self._blocked:
                self._begin(symbol + new, n, places, changed)
        for symbol, places in after.items():
            n = sum(map(frequency, places))
            self._fall(pair[1] + symbol, n, changed)
            self._begin(new + symbol, n, places, changed)
        if runs:
            n = sum(map(frequency, runs))
            self._fall(pair[1] + pair[0], n, changed)
            self._begin(new + new, n, runs, changed)
        return changed

    def _rewrite(self, pair: str, new: str) -> tuple[dict[str, list[int]], dict[str, list[int]], list[int], list[int]]:
        """Join `pair` in its words.

        Returns:
            Indices of words, one per occurrence: by the symbol before a join, by the symbol after it, where
            two joins meet, and of every join.
        """
        words = self._words
        before: defaultdict[str, list[int]] = defaultdict(list)
        after: defaultdict[str, list[int]] = defaultdict(list)
        runs: list[int] = []
        joined: list[int] = []
        for index in self._where.pop(pair):
            parts = words[index].split(pair)
            if len(parts) == 2:
                head, tail = parts
                if head:
                    before[head[-1]].append(index)
                if tail:
                    after[tail[0]].append(index)
                words[index] = head + new + tail
                joined.append(index)
            elif len(parts) > 2:
                words[index] = new.join(parts)
                joined.extend([index] * (len(parts) - 1))
                runs.extend([index] * parts[1:-1].count(""))
                for head in filter(None, parts[:-1]):
                    before[head[-1]].append(index)
                for tail in filter(None, parts[1:]):
                    after[tail[0]].append(index)
        return before, after, runs, joined

    def _fall(self, pair: str, by: int, changed: list[str]) -> None:
        n = self.pairs.get(pair)
        if n is not None:
            changed.append(pair)
            if n - by >= self._floor:
                self.pairs[pair] = n - by
            else:
                del self.pairs[pair], self._where[pair]

    def _begin(self, pair: str, n: int, places: list[int], changed: list[str]) -> None:
        if n >= self._floor:
            self.pairs[pair] = n
            self._where[pair] = places
            changed.append(pair)


def _written(job: Job) -> list[str]:
    """Every word in the characters of its symbols."""
    ids = {symbol: _character(number) for number, symbol in enumerate(job.alphabet)}
    characters = set(chain.from_iterable(job.words))
    first = {char: ids[char] for char in characters if char in ids}
    rest = {ord(char): ids[job.prefix + char] for char in characters if job.prefix + char in ids}
    return [first[word[0]] + word[1:].translate(rest) for word in job.words if word]


class Waiting:
    """Pairs that are too rare for the present level, by the first level that admits them."""

    def __init__(self, levels: list[int], pairs: Mapping[str, int]) -> None:
        self._levels = levels
        self._pairs = pairs
        self._groups: list[list[str]] = [[] for _ in levels]
        self._group_of: dict[int, int] = {}
        self.position = -1
        self.add(pairs)

    @property
    def level(self) -> int:
        """Least count that is admitted now."""
        return self._levels[self.position]

    @property
    def done(self) -> bool:
        """Whether the last level is reached."""
        return self.position + 1 == len(self._levels)

    def add(self, pairs: Iterable[str]) -> None:
        """Keep pairs until their level comes."""
        for pair in pairs:
            n = self._pairs[pair]
            group = self._group_of.get(n)
            if group is None:
                group = next(place for place, level in enumerate(self._levels) if n >= level)
                self._group_of[n] = group
            self._groups[group].append(pair)

    def next_level(self) -> list[str]:
        """Go down one level; returns the pairs that it admits. A pair may come twice."""
        self.position += 1
        due, self._groups[self.position] = self._groups[self.position], []
        admitted = []
        for pair in due:
            n = self._pairs.get(pair, 0)
            if n >= self.level:
                admitted.append(pair)
            elif n:
                self.add((pair,))
        return admitted
