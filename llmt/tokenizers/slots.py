"""The arrays of the compiled engine, and the heap of pairs in them.

The heap compares what was noted when a slot was last moved, never the present counts: those change one by one,
and an element with two values would break the heap unnoticed. Likelihoods are compared as fractions, by products
of 192 bits. Gains are compared as in `gain`: a key is never too small, and is put right at the top.
"""

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from llmt.tokenizers import gain as _gains

_F = TypeVar("_F", bound=Callable[..., Any])
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]

NONE = -1
STEPS = 256  # merges between two looks at the clock
MORE, EXHAUSTED, FULL = 0, 1, 2
NEXT, FREE, SIZE, TOTAL, LEVEL, FLOOR, DONE, NEED, GAIN = range(9)
# Of a position: its id, or NONE after it was joined to the one before; the positions after and before it in
# the word; the slot of the pair that begins here; the next and the last occurrence of that pair; its word.
SYMBOL, AFTER, BEFORE, PAIR, LATER, EARLIER, WORD = range(7)
# Of an id: the first entered slot with this left half, and right half; the slot of (this, new) and of
# (new, this) while one merge is under way; whether it is never a left half.
AS_LEFT, AS_RIGHT, BY_LEFT, BY_RIGHT, BLOCKED = range(5)
# Of a slot: both halves (LEFT is NONE where the slot is free); its first occurrence, and how many there are;
# its place in the heap; the last merge that touched it; from CHAIN on the next and the last slot with the same
# left half, and with the same right half.
LEFT, RIGHT, FIRST, TIMES, PLACE, MARK, CHAIN = range(7)
# Its present n; the N of its gain; from SEEN on n, c(A) and c(B) when it was last moved.
N, DATED, SEEN = range(3)
KEY, VALUE = range(2)
NEAR = 1e-14  # doubles nearer to each other than this are compared as fractions
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def kernel(function: _F) -> _F:
    """Compile at the first call, and keep the result on disk where numba finds a folder that it may write to."""
    try:
        return cast(_F, numba.njit(cache=True)(function))
    except RuntimeError:
        return cast(_F, numba.njit(function))


def _kernel_of(function: Any, **names: Any) -> Any:
    """Compile a Python function with compiled ones in place of those that it calls."""
    scope = {"__name__": function.__module__, "__builtins__": __builtins__, **names}
    return kernel(FunctionType(function.__code__, scope, function.__name__, function.__defaults__))


# One formula for both engines: the doubles are the same because the operations are.
_atanh = _kernel_of(_gains._atanh)
_log = _kernel_of(_gains._log, _atanh=_atanh, frexp=math.frexp, _LN2=_gains._LN2, _ROOT_HALF=_gains._ROOT_HALF)
_rest = _kernel_of(_gains._rest, _atanh=_atanh, _log=_log)
_gain = _kernel_of(_gains.gain, _log=_log, _rest=_rest)
SLACK = _gains.SLACK


class State(NamedTuple):
    """All arrays. Rows: a symbol in a word, a word, an id, or a slot, which is a pair."""

    now: Longs  # [scalars]: NEXT, FREE, ...
    positions: Ints  # [positions, 7]: SYMBOL, ...
    frequency: Longs  # [words]
    uses: Longs  # [ids]: how often each occurs
    symbols: Ints  # [ids, 5]: AS_LEFT, ...
    slots: Ints  # [slots, 10]: LEFT, ...
    slot_longs: Longs  # [slots, 5]: N, ...
    slot_doubles: Doubles  # [slots, 2]: KEY, VALUE
    heap: Ints  # [slots]: slots, the best first
    free: Ints  # [slots]: slots that hold no pair
    touched: Ints  # [slots]: what the merge under way changed
    halves: Ints  # [joins, 2]: the result
    counts: Longs  # [joins, 3]: n, c(A), c(B)
    values: Doubles  # [joins]: gains


@kernel
def _product(a: Any, b: Any, c: Any) -> Any:
    """a b c, each below 2^53, as three limbs of 64 bits, the highest first."""
    a1, a0, b1, b0 = a >> HALF, a & LOW, b >> HALF, b & LOW
    mid = a1 * b0 + (a0 * b0 >> HALF)
    cross = a0 * b1 + (mid & LOW)
    high = a1 * b1 + (mid >> HALF) + (cross >> HALF)
    low = a * b
    c1, c0 = c >> HALF, c & LOW
    l1, l0, h1, h0 = low >> HALF, low & LOW, high >> HALF, high & LOW
    mid = l1 * c0 + (l0 * c0 >> HALF)
    cross = l0 * c1 + (mid & LOW)
    carry = l1 * c1 + (mid >> HALF) + (cross >> HALF)
    bottom = low * c
    middle = high * c + carry
    over = np.uint64(1) if middle < carry else np.uint64(0)
    mid = h1 * c0 + (h0 * c0 >> HALF)
    cross = h0 * c1 + (mid & LOW)
    top = h1 * c1 + (mid >> HALF) + (cross >> HALF) + over
    return top, middle, bottom


@kernel
def _compare(s: State, i: int, j: int) -> int:
    """Which score is larger, as fractions: 1, 0 or -1."""
    seen = s.slot_longs
    one = _product(np.uint64(seen[i, SEEN]), np.uint64(seen[j, SEEN + 1]), np.uint64(seen[j, SEEN + 2]))
    two = _product(np.uint64(seen[j, SEEN]), np.uint64(seen[i, SEEN + 1]), np.uint64(seen[i, SEEN + 2]))
    for limb in range(3):
        if one[limb] != two[limb]:
            return 1 if one[limb] > two[limb] else -1
    return 0


@kernel
def by_ties(s: State, i: int, j: int) -> bool:
    """Whether slot i goes before slot j when their scores are equal."""
    if s.slot_longs[i, SEEN] != s.slot_longs[j, SEEN]:
        return bool(s.slot_longs[i, SEEN] > s.slot_longs[j, SEEN])
    if s.slots[i, LEFT] != s.slots[j, LEFT]:
        return bool(s.slots[i, LEFT] < s.slots[j, LEFT])
    return bool(s.slots[i, RIGHT] < s.slots[j, RIGHT])


@kernel
def _better(s: State, i: int, j: int) -> bool:
    """Whether slot i goes before slot j in the heap."""
    one, two = s.slot_doubles[i, KEY], s.slot_doubles[j, KEY]
    if s.now[GAIN]:
        return bool(one > two)
    if abs(one - two) > NEAR * one:
        return bool(one > two)
    order = _compare(s, i, j)
    return bool(order > 0 or (order == 0 and by_ties(s, i, j)))


@kernel
def _up(s: State, at: int) -> int:
    heap = s.heap
    slot = heap[at]
    while at > 0:
        parent = (at - 1) // 2
        if not _better(s, slot, heap[parent]):
            break
        heap[at] = heap[parent]
        s.slots[heap[at], PLACE] = at
        at = parent
    heap[at] = slot
    s.slots[slot, PLACE] = at
    return at


@kernel
def _down(s: State, at: int) -> None:
    heap, size = s.heap, s.now[SIZE]
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
        s.slots[heap[at], PLACE] = at
        at = child
    heap[at] = slot
    s.slots[slot, PLACE] = at


@kernel
def _note(s: State, slot: int) -> None:
    """Write down the present counts and score of a slot."""
    a, b = s.slots[slot, LEFT], s.slots[slot, RIGHT]
    n, first, second = s.slot_longs[slot, N], s.uses[a], s.uses[b]
    s.slot_longs[slot, SEEN], s.slot_longs[slot, SEEN + 1], s.slot_longs[slot, SEEN + 2] = n, first, second
    if s.now[GAIN]:
        s.slot_doubles[slot, VALUE] = _gain(n, first, second, s.now[TOTAL], a == b)
        s.slot_longs[slot, DATED] = s.now[TOTAL]
        s.slot_doubles[slot, KEY] = s.slot_doubles[slot, VALUE] + n * SLACK
    else:
        s.slot_doubles[slot, KEY] = n / (float(first) * float(second))


@kernel
def move(s: State, slot: int) -> None:
    """Give a slot its place in the heap by its present counts."""
    _note(s, slot)
    _down(s, _up(s, s.slots[slot, PLACE]))


@kernel
def _link(s: State, slot: int, side: int) -> None:
    """Put a slot into the chain of its left (0) or right (1) half."""
    symbol, chain = s.slots[slot, LEFT + side], CHAIN + 2 * side
    head = s.symbols[symbol, AS_LEFT + side]
    s.slots[slot, chain] = head
    s.slots[slot, chain + 1] = NONE
    if head != NONE:
        s.slots[head, chain + 1] = slot
    s.symbols[symbol, AS_LEFT + side] = slot


@kernel
def _unlink(s: State, slot: int, side: int) -> None:
    chain = CHAIN + 2 * side
    following, previous = s.slots[slot, chain], s.slots[slot, chain + 1]
    if following != NONE:
        s.slots[following, chain + 1] = previous
    if previous != NONE:
        s.slots[previous, chain] = following
    else:
        s.symbols[s.slots[slot, LEFT + side], AS_LEFT + side] = following


@kernel
def enter(s: State, slot: int) -> None:
    """Take a slot into the heap and into the chains of its symbols."""
    at = s.now[SIZE]
    s.now[SIZE] = at + 1
    s.heap[at] = slot
    s.slots[slot, PLACE] = at
    _link(s, slot, 0)
    _link(s, slot, 1)
    _note(s, slot)
    _up(s, at)


@kernel
def leave(s: State, slot: int) -> None:
    """Take a slot out of the heap and the chains, if it is there."""
    at = s.slots[slot, PLACE]
    if at == NONE:
        return
    _unlink(s, slot, 0)
    _unlink(s, slot, 1)
    s.slots[slot, PLACE] = NONE
    last = s.now[SIZE] - 1
    s.now[SIZE] = last
    if at < last:
        s.heap[at] = s.heap[last]
        s.slots[s.heap[at], PLACE] = at
        _down(s, _up(s, at))
