"""word counts -> merges, by compiled code: the same merges as `hubs` and `gain`, several times faster.

Every position of every word knows its neighbours, so a merge rewrites each of its occurrences in constant
time. Each pair has a slot: its count, the list of its occurrences and, from the present level up, a place in one
heap of all pairs. After a merge of AB every pair with A or B is moved in the heap, because its score rose.

The heap compares what was noted when a slot was last moved, never the present counts: those change one by one,
and an element with two values would break the heap unnoticed. Likelihoods are compared as fractions, by products
of 192 bits. Gains are compared as in `gain`: a key is never too small, and is put right at the top.

Only this module imports numba.
"""

import math
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from llmt.tokenizers import gain as _gains
from llmt.tokenizers.segments import Job, Join

_F = TypeVar("_F", bound=Callable[..., Any])
_Ints = NDArray[np.int32]
_Longs = NDArray[np.int64]
_Doubles = NDArray[np.float64]

_NONE = -1
_STEPS = 256  # merges between two looks at the clock
_MORE, _EXHAUSTED, _FULL = 0, 1, 2
_NEXT, _FREE, _SIZE, _TOTAL, _LEVEL, _FLOOR, _DONE, _NEED, _GAIN = range(9)
# Of a position: its id, or _NONE after it was joined to the one before; the positions after and before it in
# the word; the slot of the pair that begins here; the next and the last occurrence of that pair; its word.
_SYMBOL, _AFTER, _BEFORE, _PAIR, _LATER, _EARLIER, _WORD = range(7)
# Of an id: the first entered slot with this left half, and right half; the slot of (this, new) and of
# (new, this) while one merge is under way; whether it is never a left half.
_AS_LEFT, _AS_RIGHT, _BY_LEFT, _BY_RIGHT, _BLOCKED = range(5)
# Of a slot: both halves (_LEFT is _NONE where the slot is free); its first occurrence, and how many there are;
# its place in the heap; the last merge that touched it; from _CHAIN on the next and the last slot with the same
# left half, and with the same right half.
_LEFT, _RIGHT, _FIRST, _TIMES, _PLACE, _MARK, _CHAIN = range(7)
# Its present n; the N of its gain; from _SEEN on n, c(A) and c(B) when it was last moved.
_N, _DATED, _SEEN = range(3)
_KEY, _VALUE = range(2)
_NEAR = 1e-14  # doubles nearer to each other than this are compared as fractions
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def _kernel(function: _F) -> _F:
    """Compile at the first call, and keep the result on disk where numba finds a folder that it may write to."""
    try:
        return cast(_F, numba.njit(cache=True)(function))
    except RuntimeError:
        return cast(_F, numba.njit(function))


def _kernel_of(function: Any, **names: Any) -> Any:
    """Compile a Python function with compiled ones in place of those that it calls."""
    scope = {"__name__": function.__module__, "__builtins__": __builtins__, **names}
    return _kernel(FunctionType(function.__code__, scope, function.__name__, function.__defaults__))


# One formula for both engines: the doubles are the same because the operations are.
_atanh = _kernel_of(_gains._atanh)
_log = _kernel_of(_gains._log, _atanh=_atanh, frexp=math.frexp, _LN2=_gains._LN2, _ROOT_HALF=_gains._ROOT_HALF)
_rest = _kernel_of(_gains._rest, _atanh=_atanh, _log=_log)
_gain = _kernel_of(_gains.gain, _log=_log, _rest=_rest)
_SLACK = _gains.SLACK


class _State(NamedTuple):
    """All arrays. Rows: a symbol in a word, a word, an id, or a slot, which is a pair."""

    now: _Longs  # [scalars]: _NEXT, _FREE, ...
    positions: _Ints  # [positions, 7]: _SYMBOL, ...
    frequency: _Longs  # [words]
    uses: _Longs  # [ids]: how often each occurs
    symbols: _Ints  # [ids, 5]: _AS_LEFT, ...
    slots: _Ints  # [slots, 10]: _LEFT, ...
    slot_longs: _Longs  # [slots, 5]: _N, ...
    slot_doubles: _Doubles  # [slots, 2]: _KEY, _VALUE
    heap: _Ints  # [slots]: slots, the best first
    free: _Ints  # [slots]: slots that hold no pair
    touched: _Ints  # [slots]: what the merge under way changed
    halves: _Ints  # [joins, 2]: the result
    counts: _Longs  # [joins, 3]: n, c(A), c(B)
    values: _Doubles  # [joins]: gains


@_kernel
def _product(a: Any, b: Any, c: Any) -> Any:
    """a b c, each below 2^53, as three limbs of 64 bits, the highest first."""
    a1, a0, b1, b0 = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    mid = a1 * b0 + (a0 * b0 >> _HALF)
    cross = a0 * b1 + (mid & _LOW)
    high = a1 * b1 + (mid >> _HALF) + (cross >> _HALF)
    low = a * b
    c1, c0 = c >> _HALF, c & _LOW
    l1, l0, h1, h0 = low >> _HALF, low & _LOW, high >> _HALF, high & _LOW
    mid = l1 * c0 + (l0 * c0 >> _HALF)
    cross = l0 * c1 + (mid & _LOW)
    carry = l1 * c1 + (mid >> _HALF) + (cross >> _HALF)
    bottom = low * c
    middle = high * c + carry
    over = np.uint64(1) if middle < carry else np.uint64(0)
    mid = h1 * c0 + (h0 * c0 >> _HALF)
    cross = h0 * c1 + (mid & _LOW)
    top = h1 * c1 + (mid >> _HALF) + (cross >> _HALF) + over
    return top, middle, bottom


@_kernel
def _compare(s: _State, i: int, j: int) -> int:
    """Which score is larger, as fractions: 1, 0 or -1."""
    seen = s.slot_longs
    one = _product(np.uint64(seen[i, _SEEN]), np.uint64(seen[j, _SEEN + 1]), np.uint64(seen[j, _SEEN + 2]))
    two = _product(np.uint64(seen[j, _SEEN]), np.uint64(seen[i, _SEEN + 1]), np.uint64(seen[i, _SEEN + 2]))
    for limb in range(3):
        if one[limb] != two[limb]:
            return 1 if one[limb] > two[limb] else -1
    return 0


@_kernel
def _by_ties(s: _State, i: int, j: int) -> bool:
    if s.slot_longs[i, _SEEN] != s.slot_longs[j, _SEEN]:
        return bool(s.slot_longs[i, _SEEN] > s.slot_longs[j, _SEEN])
    if s.slots[i, _LEFT] != s.slots[j, _LEFT]:
        return bool(s.slots[i, _LEFT] < s.slots[j, _LEFT])
    return bool(s.slots[i, _RIGHT] < s.slots[j, _RIGHT])


@_kernel
def _better(s: _State, i: int, j: int) -> bool:
    """Whether slot i goes before slot j in the heap."""
    one, two = s.slot_doubles[i, _KEY], s.slot_doubles[j, _KEY]
    if s.now[_GAIN]:
        return bool(one > two)
    if abs(one - two) > _NEAR * one:
        return bool(one > two)
    order = _compare(s, i, j)
    return bool(order > 0 or (order == 0 and _by_ties(s, i, j)))


@_kernel
def _up(s: _State, at: int) -> int:
    heap = s.heap
    slot = heap[at]
    while at > 0:
        parent = (at - 1) // 2
        if not _better(s, slot, heap[parent]):
            break
        heap[at] = heap[parent]
        s.slots[heap[at], _PLACE] = at
        at = parent
    heap[at] = slot
    s.slots[slot, _PLACE] = at
    return at


@_kernel
def _down(s: _State, at: int) -> None:
    heap, size = s.heap, s.now[_SIZE]
    slot = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _better(s, heap[child + 1], heap[child]):
            child += 1
        if not _better(s, heap[child], slot):
            break
        heap[at] = heap[child]
        s.slots[heap[at], _PLACE] = at
        at = child
    heap[at] = slot
    s.slots[slot, _PLACE] = at


@_kernel
def _note(s: _State, slot: int) -> None:
    """Write down the present counts and score of a slot."""
    a, b = s.slots[slot, _LEFT], s.slots[slot, _RIGHT]
    n, first, second = s.slot_longs[slot, _N], s.uses[a], s.uses[b]
    s.slot_longs[slot, _SEEN], s.slot_longs[slot, _SEEN + 1], s.slot_longs[slot, _SEEN + 2] = n, first, second
    if s.now[_GAIN]:
        s.slot_doubles[slot, _VALUE] = _gain(n, first, second, s.now[_TOTAL], a == b)
        s.slot_longs[slot, _DATED] = s.now[_TOTAL]
        s.slot_doubles[slot, _KEY] = s.slot_doubles[slot, _VALUE] + n * _SLACK
    else:
        s.slot_doubles[slot, _KEY] = n / (float(first) * float(second))


@_kernel
def _move(s: _State, slot: int) -> None:
    """Give a slot its place in the heap by its present counts."""
    _note(s, slot)
    _down(s, _up(s, s.slots[slot, _PLACE]))


@_kernel
def _link(s: _State, slot: int, side: int) -> None:
    """Put a slot into the chain of its left (0) or right (1) half."""
    symbol, chain = s.slots[slot, _LEFT + side], _CHAIN + 2 * side
    head = s.symbols[symbol, _AS_LEFT + side]
    s.slots[slot, chain] = head
    s.slots[slot, chain + 1] = _NONE
    if head != _NONE:
        s.slots[head, chain + 1] = slot
    s.symbols[symbol, _AS_LEFT + side] = slot


@_kernel
def _unlink(s: _State, slot: int, side: int) -> None:
    chain = _CHAIN + 2 * side
    following, previous = s.slots[slot, chain], s.slots[slot, chain + 1]
    if following != _NONE:
        s.slots[following, chain + 1] = previous
    if previous != _NONE:
        s.slots[previous, chain] = following
    else:
        s.symbols[s.slots[slot, _LEFT + side], _AS_LEFT + side] = following


@_kernel
def _enter(s: _State, slot: int) -> None:
    """Take a slot into the heap and into the chains of its symbols."""
    at = s.now[_SIZE]
    s.now[_SIZE] = at + 1
    s.heap[at] = slot
    s.slots[slot, _PLACE] = at
    _link(s, slot, 0)
    _link(s, slot, 1)
    _note(s, slot)
    _up(s, at)


@_kernel
def _leave(s: _State, slot: int) -> None:
    at = s.slots[slot, _PLACE]
    if at == _NONE:
        return
    _unlink(s, slot, 0)
    _unlink(s, slot, 1)
    s.slots[slot, _PLACE] = _NONE
    last = s.now[_SIZE] - 1
    s.now[_SIZE] = last
    if at < last:
        s.heap[at] = s.heap[last]
        s.slots[s.heap[at], _PLACE] = at
        _down(s, _up(s, at))


@_kernel
def _drop(s: _State, slot: int) -> None:
    """Forget a pair: it will never be frequent enough again."""
    _leave(s, slot)
    at = s.slots[slot, _FIRST]
    while at != _NONE:
        s.positions[at, _PAIR] = _NONE
        at = s.positions[at, _LATER]
    s.slots[slot, _LEFT] = _NONE
    s.free[s.now[_FREE]] = slot
    s.now[_FREE] += 1


@_kernel
def _new_slot(s: _State, left: int, right: int) -> int:
    s.now[_FREE] -= 1
    slot = s.free[s.now[_FREE]]
    s.slots[slot, _LEFT], s.slots[slot, _RIGHT] = left, right
    s.slot_longs[slot, _N] = 0
    s.slots[slot, _FIRST] = _NONE
    s.slots[slot, _TIMES] = 0
    s.slots[slot, _PLACE] = _NONE
    s.slots[slot, _MARK] = _NONE
    return int(slot)


@_kernel
def _occur(s: _State, slot: int, at: int) -> None:
    """One more occurrence of a pair, at a position."""
    head = s.slots[slot, _FIRST]
    s.positions[at, _LATER] = head
    s.positions[at, _EARLIER] = _NONE
    if head != _NONE:
        s.positions[head, _EARLIER] = at
    s.slots[slot, _FIRST] = at
    s.positions[at, _PAIR] = slot
    s.slots[slot, _TIMES] += 1
    s.slot_longs[slot, _N] += s.frequency[s.positions[at, _WORD]]


@_kernel
def _vanish(s: _State, at: int) -> int:
    """The pair at a position is no more; returns its slot."""
    slot = s.positions[at, _PAIR]
    s.positions[at, _PAIR] = _NONE
    following, previous = s.positions[at, _LATER], s.positions[at, _EARLIER]
    if following != _NONE:
        s.positions[following, _EARLIER] = previous
    if previous != _NONE:
        s.positions[previous, _LATER] = following
    else:
        s.slots[slot, _FIRST] = following
    s.slots[slot, _TIMES] -= 1
    s.slot_longs[slot, _N] -= s.frequency[s.positions[at, _WORD]]
    return int(slot)


@_kernel
def _begin(s: _State, at: int, found: int) -> int:
    """A pair with the newest symbol begins at a position; returns how many slots are touched then."""
    left, right, new = s.positions[at, _SYMBOL], s.positions[s.positions[at, _AFTER], _SYMBOL], s.now[_NEXT]
    if s.symbols[left, _BLOCKED]:
        return found
    slot = s.symbols[left, _BY_LEFT] if right == new else s.symbols[right, _BY_RIGHT]
    if slot == _NONE:
        slot = _new_slot(s, left, right)
        s.slots[slot, _MARK] = new
        s.touched[found] = slot
        found += 1
        if right == new:
            s.symbols[left, _BY_LEFT] = slot
        else:
            s.symbols[right, _BY_RIGHT] = slot
    _occur(s, slot, at)
    return found


@_kernel
def _touch(s: _State, slot: int, found: int) -> int:
    if s.slots[slot, _MARK] != s.now[_NEXT]:
        s.slots[slot, _MARK] = s.now[_NEXT]
        s.touched[found] = slot
        found += 1
    return found


@_kernel
def _join(s: _State, at: int, found: int) -> int:
    """Join the pair at a position to the newest symbol; returns how many slots are touched then."""
    right = s.positions[at, _AFTER]
    before, after = s.positions[at, _BEFORE], s.positions[right, _AFTER]
    if s.positions[right, _PAIR] != _NONE:
        found = _touch(s, _vanish(s, right), found)
    if before != _NONE and s.positions[before, _PAIR] != _NONE:
        found = _touch(s, _vanish(s, before), found)
    _vanish(s, at)
    s.positions[at, _SYMBOL] = s.now[_NEXT]
    s.positions[right, _SYMBOL] = _NONE
    s.positions[at, _AFTER] = after
    if after != _NONE:
        s.positions[after, _BEFORE] = at
        found = _begin(s, at, found)
    if before != _NONE:
        found = _begin(s, before, found)
    return found


@_kernel
def _join_all(s: _State, slot: int) -> tuple[int, int]:
    """Join every occurrence of a pair, from left to right.

    Returns:
        How often that was, and how many slots are touched.
    """
    joined, found = 0, 0
    s.slots[slot, _MARK] = s.now[_NEXT]
    if s.slots[slot, _LEFT] == s.slots[slot, _RIGHT]:  # occurrences may overlap: the first one wins
        places = np.empty(s.slots[slot, _TIMES], np.int32)
        at = s.slots[slot, _FIRST]
        for i in range(len(places)):
            places[i] = at
            at = s.positions[at, _LATER]
        places.sort()
        for at in places:
            if s.positions[at, _PAIR] == slot:
                joined += s.frequency[s.positions[at, _WORD]]
                found = _join(s, at, found)
        return joined, found
    at = s.slots[slot, _FIRST]
    while at != _NONE:
        following = s.positions[at, _LATER]
        joined += s.frequency[s.positions[at, _WORD]]
        found = _join(s, at, found)
        at = following
    return joined, found


@_kernel
def _settle(s: _State, slot: int) -> None:
    """Put a touched pair where its count belongs."""
    left, right, new = s.slots[slot, _LEFT], s.slots[slot, _RIGHT], s.now[_NEXT]
    if right == new:
        s.symbols[left, _BY_LEFT] = _NONE
    elif left == new:
        s.symbols[right, _BY_RIGHT] = _NONE
    if s.slot_longs[slot, _N] < s.now[_FLOOR]:
        _drop(s, slot)
    elif s.slot_longs[slot, _N] < s.now[_LEVEL]:
        _leave(s, slot)
    elif s.slots[slot, _PLACE] == _NONE:
        _enter(s, slot)
    else:
        _move(s, slot)


@_kernel
def _move_all(s: _State, symbol: int) -> None:
    """Move every entered pair with a symbol."""
    slot = s.symbols[symbol, _AS_LEFT]
    while slot != _NONE:
        _move(s, slot)
        slot = s.slots[slot, _CHAIN]
    slot = s.symbols[symbol, _AS_RIGHT]
    while slot != _NONE:
        _move(s, slot)
        slot = s.slots[slot, _CHAIN + 2]


@_kernel
def _merge(s: _State, slot: int) -> None:
    a, b, new = s.slots[slot, _LEFT], s.slots[slot, _RIGHT], s.now[_NEXT]
    joined, found = _join_all(s, slot)
    s.uses[a] -= joined
    s.uses[b] -= joined
    s.uses[new] = joined
    s.now[_TOTAL] -= joined
    _drop(s, slot)
    for i in range(found):
        _settle(s, s.touched[i])
    _move_all(s, a)
    if b != a:
        _move_all(s, b)
    s.now[_NEXT] = new + 1


@_kernel
def _best(s: _State) -> int:
    """The slot to merge next; the heap is not empty."""
    if not s.now[_GAIN]:
        return int(s.heap[0])
    while True:
        while s.slot_longs[s.heap[0], _DATED] != s.now[_TOTAL]:
            _move(s, s.heap[0])
        best = s.heap[0]
        found = _candidates(s, s.slot_doubles[best, _VALUE])
        stale = 0
        for i in range(found):
            slot = s.touched[i]
            if s.slot_longs[slot, _DATED] != s.now[_TOTAL]:
                _move(s, slot)
                stale += 1
            elif s.slot_doubles[slot, _VALUE] > s.slot_doubles[best, _VALUE] or (
                s.slot_doubles[slot, _VALUE] == s.slot_doubles[best, _VALUE] and _by_ties(s, slot, best)
            ):
                best = slot
        if stale == 0:
            return int(best)


@_kernel
def _candidates(s: _State, value: float) -> int:
    """Put the slots with keys of at least `value` into `touched`; returns how many there are."""
    found, size = 1, s.now[_SIZE]
    s.touched[0] = s.heap[0]
    seen = 0
    while seen < found:
        at = s.slots[s.touched[seen], _PLACE]
        seen += 1
        for child in range(2 * at + 1, min(2 * at + 3, size)):
            if s.slot_doubles[s.heap[child], _KEY] >= value:
                s.touched[found] = s.heap[child]
                found += 1
    return found


@_kernel
def _advance(s: _State, steps: int) -> int:
    """Some merges, written to the result; says why it stopped."""
    for _ in range(steps):
        done = s.now[_DONE]
        if done == len(s.values) or s.now[_SIZE] == 0:
            return _EXHAUSTED
        slot = _best(s)
        needed = 2 * min(s.slots[slot, _TIMES], s.now[_NEXT] + 1)
        if s.now[_FREE] < needed:
            s.now[_NEED] = needed
            return _FULL
        s.halves[done, 0], s.halves[done, 1] = s.slots[slot, _LEFT], s.slots[slot, _RIGHT]
        s.counts[done, 0] = s.slot_longs[slot, _N]
        s.counts[done, 1], s.counts[done, 2] = s.uses[s.slots[slot, _LEFT]], s.uses[s.slots[slot, _RIGHT]]
        s.values[done] = s.slot_doubles[slot, _VALUE]
        s.now[_DONE] = done + 1
        _merge(s, slot)
    return _MORE


@_kernel
def _admit(s: _State) -> None:
    """Enter what the present level admits."""
    for slot in range(len(s.slots)):
        if s.slots[slot, _LEFT] != _NONE and s.slots[slot, _PLACE] == _NONE and s.slot_longs[slot, _N] >= s.now[_LEVEL]:
            _enter(s, slot)


@_kernel
def _ordered(s: _State, starts: _Longs) -> _Ints:
    """The positions that begin a pair, those with one symbol together; changes `starts`, the first of each."""
    order = np.empty(len(s.positions), np.int32)
    for at in range(len(s.positions)):
        symbol = s.positions[at, _SYMBOL]
        s.uses[symbol] += s.frequency[s.positions[at, _WORD]]
        order[starts[symbol]] = at
        starts[symbol] += 1
    return order


@_kernel
def _different(s: _State, order: _Ints) -> int:
    """How many different pairs there are."""
    found = 0
    for at in order:
        if s.positions[at, _AFTER] != _NONE:
            left, right = s.positions[at, _SYMBOL], s.positions[s.positions[at, _AFTER], _SYMBOL]
            if s.symbols[right, _BY_RIGHT] != left:
                s.symbols[right, _BY_RIGHT] = left
                found += 1
    return found


@_kernel
def _count(s: _State, order: _Ints) -> None:
    """Count the pairs of the words."""
    s.symbols[:, _BY_RIGHT] = _NONE
    start = 0
    while start < len(order):
        left = s.positions[order[start], _SYMBOL]
        end = start
        while end < len(order) and s.positions[order[end], _SYMBOL] == left:
            if s.positions[order[end], _AFTER] != _NONE and not s.symbols[left, _BLOCKED]:
                _first_count(s, order[end])
            end += 1
        for at in order[start:end]:
            slot = s.positions[at, _PAIR]
            if slot != _NONE:
                s.symbols[s.slots[slot, _RIGHT], _BY_RIGHT] = _NONE
                if s.slot_longs[slot, _N] < s.now[_FLOOR]:
                    _drop(s, slot)
        start = end


@_kernel
def _first_count(s: _State, at: int) -> None:
    right = s.positions[s.positions[at, _AFTER], _SYMBOL]
    slot = s.symbols[right, _BY_RIGHT]
    if slot == _NONE:
        slot = _new_slot(s, s.positions[at, _SYMBOL], right)
        s.symbols[right, _BY_RIGHT] = slot
    _occur(s, slot, at)


def joins(job: Job) -> Iterator[Join]:
    """The merges of `job`, best first."""
    s = _start(job)
    told = 0
    for level in job.levels:
        s.now[_LEVEL] = level
        _admit(s)
        status = _MORE
        while status != _EXHAUSTED:
            status = _advance(s, _STEPS)
            yield from _told(s, told, job)
            told = int(s.now[_DONE])
            if status == _FULL:
                s = _with_slots(s, max(int(s.now[_NEED]), len(s.slots) // 4))
        if told == job.joins:
            return


def _told(s: _State, since: int, job: Job) -> Iterator[Join]:
    """The merges since the last time."""
    new = slice(since, int(s.now[_DONE]))
    for (left, right), (n, first, second), value in zip(
        s.halves[new].tolist(), s.counts[new].tolist(), s.values[new].tolist(), strict=True
    ):
        yield left, right, n, value if job.score == "gain" else n / (first * second)


def _start(job: Job) -> _State:
    """The state before the first merge."""
    words = [word for word in job.words if word]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.cumsum(lengths)
    frequency = np.fromiter((n for word, n in job.words.items() if word), np.int64, len(words))
    ids = len(job.alphabet) + job.joins
    symbols = np.full((ids, 5), _NONE, np.int32)
    symbols[:, _BLOCKED] = 0
    symbols[list(job.blocked), _BLOCKED] = 1
    now = np.zeros(9, np.int64)
    now[_NEXT], now[_FLOOR], now[_GAIN] = len(job.alphabet), job.levels[-1], job.score == "gain"
    now[_TOTAL] = int(frequency @ lengths)
    state = _State(
        now=now,
        positions=_positions(words, lengths, ends, job),
        frequency=frequency,
        uses=np.zeros(ids, np.int64),
        symbols=symbols,
        **_slots(0),
        halves=np.empty((job.joins, 2), np.int32),
        counts=np.empty((job.joins, 3), np.int64),
        values=np.zeros(job.joins),
    )
    sizes = np.bincount(state.positions[:, _SYMBOL], minlength=ids)
    order = _ordered(state, np.cumsum(sizes) - sizes)
    state = _with_slots(state, _different(state, order) + len(job.alphabet) + 1024)
    _count(state, order)
    return state


def _positions(words: list[str], lengths: _Longs, ends: _Longs, job: Job) -> _Ints:
    """One row for each character of all words."""
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32)
    ids = {symbol: number for number, symbol in enumerate(job.alphabet)}
    first, rest = (np.zeros(int(codes.max(initial=0)) + 1, np.int32) for _ in range(2))
    for char in set("".join(words)):
        first[ord(char)] = ids.get(char, 0)
        rest[ord(char)] = ids.get(job.prefix + char, 0)
    rows = np.full((len(codes), 7), _NONE, np.int32)
    rows[:, _SYMBOL] = rest[codes]
    rows[ends - lengths, _SYMBOL] = first[codes[ends - lengths]]
    rows[:, _AFTER] = np.arange(1, len(codes) + 1)
    rows[:, _BEFORE] = np.arange(-1, len(codes) - 1)
    rows[ends - 1, _AFTER] = _NONE
    rows[ends - lengths, _BEFORE] = _NONE
    rows[:, _WORD] = np.repeat(np.arange(len(words)), lengths)
    return rows


def _slots(size: int) -> dict[str, Any]:
    """Arrays for slots, all free."""
    return {
        "slots": np.full((size, _CHAIN + 4), _NONE, np.int32),
        "slot_longs": np.zeros((size, _SEEN + 3), np.int64),
        "slot_doubles": np.zeros((size, 2)),
        "heap": np.zeros(size, np.int32),
        "free": np.zeros(size, np.int32),
        "touched": np.zeros(size, np.int32),
    }


def _with_slots(s: _State, more: int) -> _State:
    """The same state with room for more pairs."""
    old, free = len(s.slots), int(s.now[_FREE])
    wide = _slots(old + more)
    for name, array in wide.items():
        array[:old] = s._asdict()[name]
    wide["free"][free : free + more] = np.arange(old + more - 1, old - 1, -1)
    s.now[_FREE] += more
    return s._replace(**wide)
