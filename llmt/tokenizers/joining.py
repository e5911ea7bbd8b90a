"""One merge after the other, in the arrays of `slots`.

Every position of every word knows its neighbours, so a merge rewrites each of its occurrences in constant time.
After a merge of AB every pair with A or B is moved in the heap, because its score rose.
"""

import numpy as np

from llmt.tokenizers.slots import (
    AFTER,
    AS_LEFT,
    AS_RIGHT,
    BEFORE,
    BLOCKED,
    BY_LEFT,
    BY_RIGHT,
    CHAIN,
    DATED,
    DONE,
    EARLIER,
    EXHAUSTED,
    FIRST,
    FLOOR,
    FREE,
    FULL,
    GAIN,
    KEY,
    LATER,
    LEFT,
    LEVEL,
    MARK,
    MORE,
    NEED,
    NEXT,
    NONE,
    PAIR,
    PLACE,
    RIGHT,
    SIZE,
    SYMBOL,
    TIMES,
    TOTAL,
    VALUE,
    WORD,
    Ints,
    Longs,
    N,
    State,
    by_ties,
    enter,
    kernel,
    leave,
    move,
)


@kernel
def _drop(s: State, slot: int) -> None:
    """Forget a pair: it will never be frequent enough again."""
    leave(s, slot)
    at = s.slots[slot, FIRST]
    while at != NONE:
        s.positions[at, PAIR] = NONE
        at = s.positions[at, LATER]
    s.slots[slot, LEFT] = NONE
    s.free[s.now[FREE]] = slot
    s.now[FREE] += 1


@kernel
def _new_slot(s: State, left: int, right: int) -> int:
    s.now[FREE] -= 1
    slot = s.free[s.now[FREE]]
    s.slots[slot, LEFT], s.slots[slot, RIGHT] = left, right
    s.slot_longs[slot, N] = 0
    s.slots[slot, FIRST] = NONE
    s.slots[slot, TIMES] = 0
    s.slots[slot, PLACE] = NONE
    s.slots[slot, MARK] = NONE
    return int(slot)


@kernel
def _occur(s: State, slot: int, at: int) -> None:
    """One more occurrence of a pair, at a position."""
    head = s.slots[slot, FIRST]
    s.positions[at, LATER] = head
    s.positions[at, EARLIER] = NONE
    if head != NONE:
        s.positions[head, EARLIER] = at
    s.slots[slot, FIRST] = at
    s.positions[at, PAIR] = slot
    s.slots[slot, TIMES] += 1
    s.slot_longs[slot, N] += s.frequency[s.positions[at, WORD]]


@kernel
def _vanish(s: State, at: int) -> int:
    """The pair at a position is no more; returns its slot."""
    slot = s.positions[at, PAIR]
    s.positions[at, PAIR] = NONE
    following, previous = s.positions[at, LATER], s.positions[at, EARLIER]
    if following != NONE:
        s.positions[following, EARLIER] = previous
    if previous != NONE:
        s.positions[previous, LATER] = following
    else:
        s.slots[slot, FIRST] = following
    s.slots[slot, TIMES] -= 1
    s.slot_longs[slot, N] -= s.frequency[s.positions[at, WORD]]
    return int(slot)


@kernel
def _begin(s: State, at: int, found: int) -> int:
    """A pair with the newest symbol begins at a position; returns how many slots are touched then."""
    left, right, new = s.positions[at, SYMBOL], s.positions[s.positions[at, AFTER], SYMBOL], s.now[NEXT]
    if s.symbols[left, BLOCKED]:
        return found
    slot = s.symbols[left, BY_LEFT] if right == new else s.symbols[right, BY_RIGHT]
    if slot == NONE:
        slot = _new_slot(s, left, right)
        s.slots[slot, MARK] = new
        s.touched[found] = slot
        found += 1
        if right == new:
            s.symbols[left, BY_LEFT] = slot
        else:
            s.symbols[right, BY_RIGHT] = slot
    _occur(s, slot, at)
    return found


@kernel
def _touch(s: State, slot: int, found: int) -> int:
    if s.slots[slot, MARK] != s.now[NEXT]:
        s.slots[slot, MARK] = s.now[NEXT]
        s.touched[found] = slot
        found += 1
    return found


@kernel
def _join(s: State, at: int, found: int) -> int:
    """Join the pair at a position to the newest symbol; returns how many slots are touched then."""
    right = s.positions[at, AFTER]
    before, after = s.positions[at, BEFORE], s.positions[right, AFTER]
    if s.positions[right, PAIR] != NONE:
        found = _touch(s, _vanish(s, right), found)
    if before != NONE and s.positions[before, PAIR] != NONE:
        found = _touch(s, _vanish(s, before), found)
    _vanish(s, at)
    s.positions[at, SYMBOL] = s.now[NEXT]
    s.positions[right, SYMBOL] = NONE
    s.positions[at, AFTER] = after
    if after != NONE:
        s.positions[after, BEFORE] = at
        found = _begin(s, at, found)
    if before != NONE:
        found = _begin(s, before, found)
    return found


@kernel
def _join_all(s: State, slot: int) -> tuple[int, int]:
    """Join every occurrence of a pair, from left to right.

    Returns:
        How often that was, and how many slots are touched.
    """
    joined, found = 0, 0
    s.slots[slot, MARK] = s.now[NEXT]
    if s.slots[slot, LEFT] == s.slots[slot, RIGHT]:  # occurrences may overlap: the first one wins
        places = np.empty(s.slots[slot, TIMES], np.int32)
        at = s.slots[slot, FIRST]
        for i in range(len(places)):
            places[i] = at
            at = s.positions[at, LATER]
        places.sort()
        for at in places:
            if s.positions[at, PAIR] == slot:
                joined += s.frequency[s.positions[at, WORD]]
                found = _join(s, at, found)
        return joined, found
    at = s.slots[slot, FIRST]
    while at != NONE:
        following = s.positions[at, LATER]
        joined += s.frequency[s.positions[at, WORD]]
        found = _join(s, at, found)
        at = following
    return joined, found


@kernel
def _settle(s: State, slot: int) -> None:
    """Put a touched pair where its count belongs."""
    left, right, new = s.slots[slot, LEFT], s.slots[slot, RIGHT], s.now[NEXT]
    if right == new:
        s.symbols[left, BY_LEFT] = NONE
    elif left == new:
        s.symbols[right, BY_RIGHT] = NONE
    if s.slot_longs[slot, N] < s.now[FLOOR]:
        _drop(s, slot)
    elif s.slot_longs[slot, N] < s.now[LEVEL]:
        leave(s, slot)
    elif s.slots[slot, PLACE] == NONE:
        enter(s, slot)
    else:
        move(s, slot)


@kernel
def _move_all(s: State, symbol: int) -> None:
    """Move every entered pair with a symbol."""
    slot = s.symbols[symbol, AS_LEFT]
    while slot != NONE:
        move(s, slot)
        slot = s.slots[slot, CHAIN]
    slot = s.symbols[symbol, AS_RIGHT]
    while slot != NONE:
        move(s, slot)
        slot = s.slots[slot, CHAIN + 2]


@kernel
def _merge(s: State, slot: int) -> None:
    a, b, new = s.slots[slot, LEFT], s.slots[slot, RIGHT], s.now[NEXT]
    joined, found = _join_all(s, slot)
    s.uses[a] -= joined
    s.uses[b] -= joined
    s.uses[new] = joined
    s.now[TOTAL] -= joined
    _drop(s, slot)
    for i in range(found):
        _settle(s, s.touched[i])
    _move_all(s, a)
    if b != a:
        _move_all(s, b)
    s.now[NEXT] = new + 1


@kernel
def _best(s: State) -> int:
    """The slot to merge next; the heap is not empty."""
    if not s.now[GAIN]:
        return int(s.heap[0])
    while True:
        while s.slot_longs[s.heap[0], DATED] != s.now[TOTAL]:
            move(s, s.heap[0])
        best = s.heap[0]
        found = _candidates(s, s.slot_doubles[best, VALUE])
        stale = 0
        for i in range(found):
            slot = s.touched[i]
            if s.slot_longs[slot, DATED] != s.now[TOTAL]:
                move(s, slot)
                stale += 1
            elif s.slot_doubles[slot, VALUE] > s.slot_doubles[best, VALUE] or (
                s.slot_doubles[slot, VALUE] == s.slot_doubles[best, VALUE] and by_ties(s, slot, best)
            ):
                best = slot
        if stale == 0:
            return int(best)


@kernel
def _candidates(s: State, value: float) -> int:
    """Put the slots with keys of at least `value` into `touched`; returns how many there are."""
    found, size = 1, s.now[SIZE]
    s.touched[0] = s.heap[0]
    seen = 0
    while seen < found:
        at = s.slots[s.touched[seen], PLACE]
        seen += 1
        for child in range(2 * at + 1, min(2 * at + 3, size)):
            if s.slot_doubles[s.heap[child], KEY] >= value:
                s.touched[found] = s.heap[child]
                found += 1
    return found


@kernel
def advance(s: State, steps: int) -> int:
    """Some merges, written to the result; says why it stopped."""
    for _ in range(steps):
        done = s.now[DONE]
        if done == len(s.values) or s.now[SIZE] == 0:
            return EXHAUSTED
        slot = _best(s)
        needed = 2 * min(s.slots[slot, TIMES], s.now[NEXT] + 1)
        if s.now[FREE] < needed:
            s.now[NEED] = needed
            return FULL
        s.halves[done, 0], s.halves[done, 1] = s.slots[slot, LEFT], s.slots[slot, RIGHT]
        s.counts[done, 0] = s.slot_longs[slot, N]
        s.counts[done, 1], s.counts[done, 2] = s.uses[s.slots[slot, LEFT]], s.uses[s.slots[slot, RIGHT]]
        s.values[done] = s.slot_doubles[slot, VALUE]
        s.now[DONE] = done + 1
        _merge(s, slot)
    return MORE


@kernel
def admit(s: State) -> None:
    """Enter what the present level admits."""
    for slot in range(len(s.slots)):
        if s.slots[slot, LEFT] != NONE and s.slots[slot, PLACE] == NONE and s.slot_longs[slot, N] >= s.now[LEVEL]:
            enter(s, slot)


@kernel
def ordered(s: State, starts: Longs) -> Ints:
    """The positions that begin a pair, those with one symbol together; changes `starts`, the first of each."""
    order = np.empty(len(s.positions), np.int32)
    for at in range(len(s.positions)):
        symbol = s.positions[at, SYMBOL]
        s.uses[symbol] += s.frequency[s.positions[at, WORD]]
        order[starts[symbol]] = at
        starts[symbol] += 1
    return order


@kernel
def different(s: State, order: Ints) -> int:
    """How many different pairs there are."""
    found = 0
    for at in order:
        if s.positions[at, AFTER] != NONE:
            left, right = s.positions[at, SYMBOL], s.positions[s.positions[at, AFTER], SYMBOL]
            if s.symbols[right, BY_RIGHT] != left:
                s.symbols[right, BY_RIGHT] = left
                found += 1
    return found


@kernel
def count(s: State, order: Ints) -> None:
    """Count the pairs of the words."""
    s.symbols[:, BY_RIGHT] = NONE
    start = 0
    while start < len(order):
        left = s.positions[order[start], SYMBOL]
        end = start
        while end < len(order) and s.positions[order[end], SYMBOL] == left:
            if s.positions[order[end], AFTER] != NONE and not s.symbols[left, BLOCKED]:
                _first_count(s, order[end])
            end += 1
        for at in order[start:end]:
            slot = s.positions[at, PAIR]
            if slot != NONE:
                s.symbols[s.slots[slot, RIGHT], BY_RIGHT] = NONE
                if s.slot_longs[slot, N] < s.now[FLOOR]:
                    _drop(s, slot)
        start = end


@kernel
def _first_count(s: State, at: int) -> None:
    right = s.positions[s.positions[at, AFTER], SYMBOL]
    slot = s.symbols[right, BY_RIGHT]
    if slot == NONE:
        slot = _new_slot(s, s.positions[at, SYMBOL], right)
        s.symbols[right, BY_RIGHT] = slot
    _occur(s, slot, at)
