"""pairs -> the pair with the largest n / (c c), at any time and exactly.

A merge lowers c(A) and c(B), so the scores of all pairs with A or B *rise*. A heap that is corrected lazily
would therefore miss the best pair. So each pair is owned by its more frequent member, the hub. Inside one
hub's heap the key is n / c(other), which a change of c(hub) leaves alone; a second heap holds the best pair
of each hub with its full score. When c(hub) changes, one entry is pushed, however many pairs the hub has.

Keys are doubles. Python rounds a quotient of integers correctly, so the larger of two fractions never has the
smaller key, and equal fractions have equal keys. Two different fractions n/d and m/e can share a key only if
n e is 2^52 or more: they differ by 1 / (d e) at least. Only then are entries with equal keys compared as
fractions.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

from llmt.tokenizers.segments import Job, Join, Segments, Waiting, symbol_id

Entry = tuple[float, int, str]  # (-key, -n, pair): the smallest entry is the best pair

_EXACT = 2**51  # n d below this: equal keys mean equal fractions


def joins(job: Job) -> Iterator[Join]:
    """The merges of `job` by the likelihood score, best first."""
    segments = Segments(job)
    waiting = Waiting(job.levels, segments.pairs)
    queue = _HubQueue(segments)
    for _ in range(job.joins):
        pair = queue.pop_best()
        while pair is None and not waiting.done:
            for admitted in waiting.next_level():
                queue.enter(admitted)
            pair = queue.pop_best()
        if pair is None:
            return
        left, right = pair[0], pair[1]
        n = segments.pairs[pair]
        yield symbol_id(left), symbol_id(right), n, n / (segments.counts[left] * segments.counts[right])
        changed = segments.merge(pair)
        waiting.add(queue.update(pair, changed, waiting.level))


class _HubQueue:
    """The best pair in two levels of heaps (see the module's docstring)."""

    def __init__(self, segments: Segments) -> None:
        self._counts = segments.counts
        self._pairs = segments.pairs
        self._hub: dict[str, str] = {}
        self._groups: defaultdict[str, list[Entry]] = defaultdict(list)
        self._minor: defaultdict[str, set[str]] = defaultdict(set)  # pairs in which this symbol is not the hub
        self._champions: list[Entry] = []
        self._crowned: dict[str, Entry] = {}
        self._dirty: set[str] = set()

    def enter(self, pair: str) -> None:
        """Take a pair in, if it is not yet."""
        if pair in self._hub:
            return
        left, right = pair[0], pair[1]
        hub, minor = (left, right) if self._counts[left] > self._counts[right] else (right, left)
        self._hub[pair] = hub
        self._minor[minor].add(pair)
        self._push(pair, hub)

    def pop_best(self) -> str | None:
        """Take the best pair out of the heap of champions, or None when no pair is entered."""
        for hub in self._dirty:
            self._crown(hub)
        self._dirty.clear()
        best = _best(self._champions, self._is_champion, self._product)
        return None if best is None else best[2]

    def update(self, merged: str, changed: list[str], level: int) -> list[str]:
        """Follow one merge: `changed` pairs have new counts, and the two merged symbols are rarer.

        Returns:
            The pairs below `level`.
        """
        pairs, hubs = self._pairs, self._hub
        self._leave(merged)
        rare = []
        for pair in changed:
            n = pairs.get(pair, 0)
            if n >= level:
                hub = hubs.get(pair)
                if hub is None:
                    self.enter(pair)
                else:
                    self._push(pair, hub)
            else:
                self._leave(pair)
                if n:
                    rare.append(pair)
        for symbol in set(merged):
            for pair in self._minor[symbol]:
                self._push(pair, hubs[pair])
            self._dirty.add(symbol)
        return rare

    def _leave(self, pair: str) -> None:
        hub = self._hub.pop(pair, None)
        if hub is not None:
            self._minor[_other(pair, hub)].discard(pair)
            self._crowned.pop(hub, None)
            self._dirty.add(hub)

    def _push(self, pair: str, hub: str) -> None:
        n = self._pairs[pair]
        heappush(self._groups[hub], (-n / self._counts[_other(pair, hub)], -n, pair))
        self._dirty.add(hub)

    def _crown(self, hub: str) -> None:
        """Drop what is out of date at the top of the hub's heap and enter its best pair above."""

        def is_current(entry: Entry) -> bool:
            key, n, pair = entry
            return self._hub.get(pair) == hub and self._pairs[pair] == -n and n / self._counts[_other(pair, hub)] == key

        def divisor(pair: str) -> int:
            return self._counts[_other(pair, hub)]

        group = self._groups[hub]
        best = _best(group, is_current, divisor)
        if best is None:
            return
        heappush(group, best)
        pair = best[2]
        champion = (best[1] / self._product(pair), best[1], pair)
        if self._crowned.get(hub) != champion:
            self._crowned[hub] = champion
            heappush(self._champions, champion)

    def _is_champion(self, entry: Entry) -> bool:
        key, n, pair = entry
        return pair in self._hub and self._pairs[pair] == -n and n / self._product(pair) == key

    def _product(self, pair: str) -> int:
        return self._counts[pair[0]] * self._counts[pair[1]]


def _best(heap: list[Entry], is_current: Callable[[Entry], bool], divisor: Callable[[str], int]) -> Entry | None:
    """Take the best current entry off `heap`, dropping what is out of date before it.

    Args:
        heap: Entries.
        is_current: Whether an entry still says the truth.
        divisor: d of a pair whose score is n / d.
    """
    while heap:
        best = heappop(heap)
        if not is_current(best):
            continue
        if -best[1] * divisor(best[2]) < _EXACT or not heap or heap[0][0] != best[0]:
            return best
        return _best_of_equals(best, heap, is_current, divisor)
    return None


def _best_of_equals(
    best: Entry, heap: list[Entry], is_current: Callable[[Entry], bool], divisor: Callable[[str], int]
) -> Entry:
    """The largest fraction among the entries whose keys equal that of `best`; the others go back."""
    equals = [best]
    while heap and heap[0][0] == best[0]:
        entry = heappop(heap)
        if entry != equals[-1] and is_current(entry):
            equals.append(entry)
    for entry in equals[1:]:  # in the order of ties, so that only a larger fraction goes before
        if entry[1] * divisor(best[2]) < best[1] * divisor(entry[2]):
            best = entry
    for entry in equals:
        if entry != best:
            heappush(heap, entry)
    return best


def _other(pair: str, hub: str) -> str:
    return pair[0] if pair[1] == hub else pair[1]
