"""Word counts -> WordPiece merges by likelihood, exactly.

The rule: merge the pair AB with the largest score n(AB) / (c(A) c(B)), the one whose join raises the
likelihood of a unigram model most per occurrence (Schuster and Nakajima, "Japanese and Korean voice search",
2012). Here n counts neighbours and c counts symbols in the present segmentation of the whole corpus.

A merge lowers c(A) and c(B), so the scores of all pairs with A or B *rise*. A heap that is corrected lazily
would therefore miss the best pair. So each pair is owned by its more frequent member, the hub. Inside one
hub's heap the key is n / c(other), which a change of c(hub) leaves alone; a second heap holds the best pair
of each hub with its full score. When c(hub) changes, one entry is pushed, however many pairs the hub has.

Scores are compared as integers, floor(n 2^s / d): two different fractions with denominators below D differ by
more than 1 / D^2, so with 2^s >= D^2 unequal scores have unequal keys and equal scores have equal ones.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import Literal

from llmt.errors import ConfigError

Threshold = Literal["anneal", "fixed"]
Progress = Callable[[int, int], None]
Pair = tuple[int, int]
Entry = tuple[int, int, Pair]  # (-key, -count, pair): the smallest entry is the best pair

PROGRESS_EVERY = 256


@dataclass(frozen=True, slots=True)
class Merge:
    """One learnt join: the two pieces, what they spell, how often they met and the score n / (c c)."""

    left: str
    right: str
    piece: str
    count: int
    score: float


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Vocabulary in id order (the sorted alphabet, then one piece per merge) and the merges in order."""

    vocabulary: list[str]
    merges: list[Merge]


def train_merges(
    words: Mapping[str, int],
    vocab_size: int,
    min_frequency: int = 2,
    threshold: Threshold = "anneal",
    continuation_prefix: str = "##",
    alphabet: Iterable[str] = (),
    reserved: int = 0,
    progress: Progress | None = None,
) -> MergeResult:
    """Learn WordPiece merges by likelihood.

    Ties go to the larger n, then to the smaller (id of A, id of B), so the result does not depend on the
    order of `words`. A word-initial symbol that begins the continuation prefix is never a left half: `#` +
    `###` would spell `##`, which already means something else.

    Args:
        words: How often each word occurs. Counts must be positive.
        vocab_size: Ids wanted: `reserved`, alphabet and merges together.
        min_frequency: Pairs that occur less often are never merged.
        threshold: `fixed` considers every pair from `min_frequency` up. `anneal` first considers only pairs
            that make up 2 % of the words, and lowers that by a fifth whenever none is left, down to
            `min_frequency`: without it the score prefers the rarest pairs and the vocabulary is spent on
            them.
        continuation_prefix: Marks symbols that do not begin a word.
        alphabet: Symbols to include whether or not they occur.
        reserved: Ids that special tokens take.
        progress: Called with (ids so far, `vocab_size`).

    Returns:
        At most `vocab_size - reserved` symbols; fewer when no pair is left.

    Raises:
        ConfigError: `vocab_size` is smaller than `reserved` and the alphabet.
    """
    corpus = _Corpus(words, min_frequency, continuation_prefix, alphabet)
    symbols = corpus.symbols
    least = reserved + len(symbols)
    if vocab_size < least:
        raise ConfigError(
            [f"vocab_size {vocab_size}: {reserved} special tokens and {len(symbols)} symbols need {least}"],
            f"ask for at least {least}",
        )
    level = max(min_frequency, sum(words.values()) // 50 + 1) if threshold == "anneal" else min_frequency
    queue = _HubQueue(corpus)
    queue.admit(level)
    merges: list[Merge] = []
    while reserved + len(symbols) < vocab_size:
        pair = queue.pop_best()
        if pair is None:
            if level == min_frequency:
                break
            level = max(min_frequency, min(level * 4 // 5, level - 1))
            queue.admit(level)
            continue
        merges.append(corpus.describe(pair))
        queue.update(pair, corpus.merge(pair), level)
        if progress is not None and len(merges) % PROGRESS_EVERY == 0:
            progress(reserved + len(symbols), vocab_size)
    if progress is not None:
        progress(reserved + len(symbols), vocab_size)
    return MergeResult(symbols, merges)


class _Corpus:
    """The present segmentation of every word, the counts, and in which words each pair may stand.

    Pairs below `floor` are not kept: a pair's count never rises after the merge that made it.
    """

    def __init__(self, words: Mapping[str, int], floor: int, prefix: str, alphabet: Iterable[str]) -> None:
        spelled = [([word[0], *(prefix + char for char in word[1:])], n) for word, n in words.items() if word]
        self.symbols = sorted({symbol for symbols, _ in spelled for symbol in symbols}.union(alphabet))
        ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        self.words = [[ids[symbol] for symbol in symbols] for symbols, _ in spelled]
        self.frequencies = [n for _, n in spelled]
        self.counts = [0] * len(self.symbols)
        self._prefix = prefix
        self._floor = floor
        self._blocked = {ids[symbol] for symbol in self.symbols if prefix.startswith(symbol)}
        self.pairs: dict[Pair, int] = defaultdict(int)
        self._where: dict[Pair, list[int]] = defaultdict(list)
        self._count()

    def _count(self) -> None:
        for index, (word, n) in enumerate(zip(self.words, self.frequencies, strict=True)):
            for symbol in word:
                self.counts[symbol] += n
            for pair in pairwise(word):
                self.pairs[pair] += n
                self._where[pair].append(index)
        for pair, n in list(self.pairs.items()):
            if n < self._floor or pair[0] in self._blocked:
                del self.pairs[pair], self._where[pair]

    def describe(self, pair: Pair) -> Merge:
        """The merge that `pair` stands for, with its present count and score."""
        left, right = pair
        piece = self.symbols[left] + self.symbols[right].removeprefix(self._prefix)
        n = self.pairs[pair]
        score = n / (self.counts[left] * self.counts[right])
        return Merge(self.symbols[left], self.symbols[right], piece, n, score)

    def merge(self, pair: Pair) -> list[Pair]:
        """Join `pair` everywhere, left to right; returns the other pairs whose count changed or began."""
        left, right = pair
        new = len(self.symbols)
        self.symbols.append(self.describe(pair).piece)
        change: dict[Pair, int] = defaultdict(int)
        found: dict[Pair, list[int]] = defaultdict(list)
        joined = 0
        for index in self._where.pop(pair):
            joins = _join(self.words[index], pair, new, self.frequencies[index], change)
            if joins:
                joined += joins * self.frequencies[index]
                word = self.words[index]
                for neighbours in pairwise(word):
                    if new in neighbours:
                        found[neighbours].append(index)
        self.counts[left] -= joined
        self.counts[right] -= joined
        self.counts.append(joined)
        del self.pairs[pair]
        change.pop(pair, None)
        self._apply(change, found, new)
        return list(change)

    def _apply(self, change: Mapping[Pair, int], found: Mapping[Pair, list[int]], new: int) -> None:
        for pair, delta in change.items():
            if new in pair:
                if delta >= self._floor and pair[0] not in self._blocked:
                    self.pairs[pair] = delta
                    self._where[pair] = found[pair]
            elif pair in self.pairs:
                self.pairs[pair] += delta
                if self.pairs[pair] < self._floor:
                    del self.pairs[pair], self._where[pair]


def _join(word: list[int], pair: Pair, new: int, frequency: int, change: dict[Pair, int]) -> int:
    """Replace `pair` by `new` in `word`, note the change of each pair; returns the number of joins."""
    left, right = pair
    merged: list[int] = []
    position, last, joins = 0, len(word) - 1, 0
    while position <= last:
        symbol = word[position]
        if symbol != left or position == last or word[position + 1] != right:
            merged.append(symbol)
            position += 1
            continue
        if merged:
            change[merged[-1], left] -= frequency
            change[merged[-1], new] += frequency
        position += 2
        if position <= last:
            change[right, word[position]] -= frequency
            change[new, word[position]] += frequency
        merged.append(new)
        joins += 1
    if joins:
        word[:] = merged
    return joins


class _HubQueue:
    """The best pair at any time, in two levels of heaps (see the module's docstring)."""

    def __init__(self, corpus: _Corpus) -> None:
        self._corpus = corpus
        self._shift = 4 * sum(corpus.counts).bit_length()
        self._hub: dict[Pair, int] = {}
        self._groups: dict[int, list[Entry]] = defaultdict(list)
        self._minor: dict[int, set[Pair]] = defaultdict(set)  # pairs in which this symbol is not the hub
        self._champions: list[Entry] = []
        self._dirty: set[int] = set()

    def admit(self, level: int) -> None:
        """Enter every pair with a count of at least `level` that is not yet entered."""
        for pair, n in self._corpus.pairs.items():
            if n >= level and pair not in self._hub:
                self._enter(pair)

    def pop_best(self) -> Pair | None:
        """Take the best pair out, or None when no pair is entered."""
        for hub in self._dirty:
            self._crown(hub)
        self._dirty.clear()
        while self._champions:
            entry = heappop(self._champions)
            pair = entry[2]
            if pair in self._hub and entry == self._entry(pair, pair):
                return pair
        return None

    def update(self, merged: Pair, changed: Iterable[Pair], level: int) -> None:
        """Follow one merge: `changed` pairs have new counts, and the two merged symbols are rarer."""
        pairs, hub = self._corpus.pairs, self._hub
        self._leave(merged)
        for pair in changed:
            if pairs.get(pair, 0) < level:
                self._leave(pair)
            elif pair in hub:
                self._push(pair)
            else:
                self._enter(pair)
        for symbol in set(merged):
            for pair in self._minor[symbol]:
                self._push(pair)
            self._dirty.add(symbol)

    def _enter(self, pair: Pair) -> None:
        left, right = pair
        counts = self._corpus.counts
        hub, minor = (left, right) if counts[left] > counts[right] else (right, left)
        self._hub[pair] = hub
        self._minor[minor].add(pair)
        self._push(pair)

    def _leave(self, pair: Pair) -> None:
        hub = self._hub.pop(pair, None)
        if hub is not None:
            self._minor[_other(pair, hub)].discard(pair)
            self._dirty.add(hub)

    def _push(self, pair: Pair) -> None:
        hub = self._hub[pair]
        heappush(self._groups[hub], self._entry(pair, (_other(pair, hub),)))
        self._dirty.add(hub)

    def _crown(self, hub: int) -> None:
        """Drop what is out of date at the top of the hub's heap and enter its best pair above."""
        group = self._groups[hub]
        while group:
            pair = group[0][2]
            if self._hub.get(pair) == hub and group[0] == self._entry(pair, (_other(pair, hub),)):
                heappush(self._champions, self._entry(pair, pair))
                return
            heappop(group)

    def _entry(self, pair: Pair, over: Iterable[int]) -> Entry:
        """Heap entry of `pair` with key count / product of the counts of the symbols in `over`."""
        n = self._corpus.pairs[pair]
        key = n << self._shift
        for symbol in over:
            key //= self._corpus.counts[symbol]
        return -key, -n, pair


def _other(pair: Pair, hub: int) -> int:
    return pair[0] if pair[1] == hub else pair[1]
