"""pairs -> the pair whose joins raise the log-likelihood most, at any time and the same on every machine.

The log-likelihood of a unigram model of the segmented corpus is L = sum over symbols of c log c, minus
N log N, where N is the number of symbols. Joining n occurrences of AB takes n from c(A) and from c(B), makes
a symbol with count n, and takes n from N. What L gains by that is, with h(c, m) = -(c - m) log(1 - m / c),

    n log(n N / (c(A) c(B))) - h(c(A), n) - h(c(B), n) + h(N, n)

Library logarithms differ between machines in the last bit, and a last bit decides ties. So the logarithm here
is made of operations that IEEE 754 defines exactly. `compiled` computes the same doubles.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from math import frexp

from llmt.tokenizers.segments import Job, Join, Segments, Waiting, symbol_id

_LN2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476

SLACK = 1e-12
"""Keys carry this share of n on top: more than the rounding of any gain, so that a key is never too small."""

Kind = tuple[int, int, int, bool]  # n, the smaller and the larger count, whether A is B


def gain(n: int, first: int, second: int, total: int, same: bool = False) -> float:
    """What the log-likelihood gains, in nats, by joining a pair.

    Args:
        n: Occurrences of the pair.
        first: Occurrences of A.
        second: Occurrences of B.
        total: Symbols in the corpus.
        same: Whether A and B are one symbol. It then loses 2 n occurrences, or all where there are fewer.
    """
    low, high = (first, second) if first < second else (second, first)
    if same:
        lost = min(2 * n, low)
        # n log n - lost log(low) + n log(total), with as much of it inside one logarithm as can be
        value = n * _log(n / low * (total / low)) + (2 * n - lost) * _log(float(low)) - _rest(low, lost)
    else:
        value = n * _log(n / low * (total / high)) - _rest(low, n) - _rest(high, n)
    return value + _rest(total, n)


def _rest(count: int, lost: int) -> float:
    """-(count - lost) log(1 - lost / count), which is 0 when all is lost."""
    left = count - lost
    if left <= 0:
        return 0.0
    if 4 * lost <= count:
        return left * (2.0 * _atanh(lost / (count + left)))
    return -left * _log(left / count)


def _log(x: float) -> float:
    """The natural logarithm of a positive number."""
    mantissa, exponent = frexp(x)
    if mantissa < _ROOT_HALF:
        mantissa *= 2.0
        exponent -= 1
    return exponent * _LN2 + 2.0 * _atanh((mantissa - 1.0) / (mantissa + 1.0))


def _atanh(z: float) -> float:
    """The inverse hyperbolic tangent of |z| <= 0.172, by its series."""
    s = z * z
    t = 1 / 13 + s * (1 / 15 + s * (1 / 17 + s * (1 / 19)))
    t = 1 / 7 + s * (1 / 9 + s * (1 / 11 + s * t))
    return z + z * (s * (1 / 3 + s * (1 / 5 + s * t)))


def joins(job: Job) -> Iterator[Join]:
    """The merges of `job` by the gain, best first."""
    segments = Segments(job)
    waiting = Waiting(job.levels, segments.pairs)
    queue = _KindQueue(segments)
    for _ in range(job.joins):
        best = queue.best()
        while best is None and not waiting.done:
            queue.enter(waiting.next_level())
            best = queue.best()
        if best is None:
            return
        pair, value = best
        yield symbol_id(pair[0]), symbol_id(pair[1]), segments.pairs[pair], value
        changed = segments.merge(pair)
        waiting.add(queue.update(pair, changed, waiting.level))


class _KindQueue:
    """The best pair in a heap of kinds: pairs with the same counts have the same gain, which is worked out once.

    When c(A) falls, the gains of A's pairs rise, and they are entered anew at once. N falls with every merge,
    which lowers all gains: keys in the heap are then too large, and are put right when they reach the top.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._counts = segments.counts
        self._pairs = segments.pairs
        self._kind: dict[str, Kind] = {}
        self._members: dict[Kind, list[str]] = {}
        self._with: defaultdict[str, set[str]] = defaultdict(set)
        self._heap: list[tuple[float, Kind]] = []

    def enter(self, pairs: Iterable[str]) -> None:
        """Take pairs in that are not yet."""
        for pair in pairs:
            if pair not in self._kind:
                self._with[pair[0]].add(pair)
                self._with[pair[1]].add(pair)
                self._place(pair)

    def best(self) -> tuple[str, float] | None:
        """The best pair and its gain, or None when no pair is entered."""
        best: tuple[float, int, str] | None = None
        seen: list[tuple[float, Kind]] = []
        while self._heap and (best is None or self._heap[0][0] <= best[0]):
            kind = heappop(self._heap)[1]
            members = self._members[kind]
            while members and self._kind.get(members[0]) != kind:
                heappop(members)
            if not members:
                del self._members[kind]
                continue
            value = self._gain(kind)
            seen.append((self._key(value, kind), kind))
            candidate = (-value, -kind[0], members[0])
            if best is None or candidate < best:
                best = candidate
        for entry in seen:
            heappush(self._heap, entry)
        return None if best is None else (best[2], -best[0])

    def update(self, merged: str, changed: list[str], level: int) -> list[str]:
        """Follow one merge; returns the changed pairs below `level`."""
        self._leave(merged)
        rare = []
        for pair in changed:
            n = self._pairs.get(pair, 0)
            if n < level:
                self._leave(pair)
                if n:
                    rare.append(pair)
            elif pair in self._kind:
                self._place(pair)
            else:
                self.enter((pair,))
        for pair in self._with[merged[0]] | self._with[merged[1]]:
            self._place(pair)
        return rare

    def _leave(self, pair: str) -> None:
        if self._kind.pop(pair, None) is not None:
            self._with[pair[0]].discard(pair)
            self._with[pair[1]].discard(pair)

    def _place(self, pair: str) -> None:
        """Put `pair` among those of its kind."""
        first, second = self._counts[pair[0]], self._counts[pair[1]]
        low, high = (first, second) if first < second else (second, first)
        kind = self._pairs[pair], low, high, pair[0] == pair[1]
        if self._kind.get(pair) == kind:
            return
        self._kind[pair] = kind
        members = self._members.get(kind)
        if members is None:
            self._members[kind] = [pair]
            heappush(self._heap, (self._key(self._gain(kind), kind), kind))
        else:
            heappush(members, pair)

    def _gain(self, kind: Kind) -> float:
        n, low, high, same = kind
        return gain(n, low, high, self._segments.total, same)

    def _key(self, value: float, kind: Kind) -> float:
        return -value - kind[0] * SLACK
