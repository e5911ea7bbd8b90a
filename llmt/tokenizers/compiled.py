"""word counts -> merges, by compiled code: the same merges as `hubs` and `gain`, several times faster.

Only this module and those that it imports, `joining` and `slots`, need numba.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from llmt.tokenizers.joining import (
    admit,
    advance,
    count,
    different,
    ordered,
)
from llmt.tokenizers.segments import Job, Join
from llmt.tokenizers.slots import (
    AFTER,
    BEFORE,
    BLOCKED,
    CHAIN,
    DONE,
    EXHAUSTED,
    FLOOR,
    FREE,
    FULL,
    GAIN,
    LEVEL,
    MORE,
    NEED,
    NEXT,
    NONE,
    SEEN,
    SYMBOL,
    TOTAL,
    WORD,
    Ints,
    Longs,
    State,
)

STEPS = 256  # merges between two looks at the clock


def joins(job: Job) -> Iterator[Join]:
    """The merges of `job`, best first."""
    s = _start(job)
    told = 0
    for level in job.levels:
        s.now[LEVEL] = level
        admit(s)
        status = MORE
        while status != EXHAUSTED:
            status = advance(s, STEPS)
            yield from _told(s, told, job)
            told = int(s.now[DONE])
            if status == FULL:
                s = _with_slots(s, max(int(s.now[NEED]), len(s.slots) // 4))
        if told == job.joins:
            return


def _told(s: State, since: int, job: Job) -> Iterator[Join]:
    """The merges since the last time."""
    new = slice(since, int(s.now[DONE]))
    for (left, right), (n, first, second), value in zip(
        s.halves[new].tolist(), s.counts[new].tolist(), s.values[new].tolist(), strict=True
    ):
        yield left, right, n, value if job.score == "gain" else n / (first * second)


def _start(job: Job) -> State:
    """The state before the first merge."""
    words = [word for word in job.words if word]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.cumsum(lengths)
    frequency = np.fromiter((n for word, n in job.words.items() if word), np.int64, len(words))
    ids = len(job.alphabet) + job.joins
    symbols = np.full((ids, 5), NONE, np.int32)
    symbols[:, BLOCKED] = 0
    symbols[list(job.blocked), BLOCKED] = 1
    now = np.zeros(9, np.int64)
    now[NEXT], now[FLOOR], now[GAIN] = len(job.alphabet), job.levels[-1], job.score == "gain"
    now[TOTAL] = int(frequency @ lengths)
    state = State(
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
    sizes = np.bincount(state.positions[:, SYMBOL], minlength=ids)
    order = ordered(state, np.cumsum(sizes) - sizes)
    state = _with_slots(state, different(state, order) + len(job.alphabet) + 1024)
    count(state, order)
    return state


def _positions(words: list[str], lengths: Longs, ends: Longs, job: Job) -> Ints:
    """One row for each character of all words."""
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32)
    ids = {symbol: number for number, symbol in enumerate(job.alphabet)}
    first, rest = (np.zeros(int(codes.max(initial=0)) + 1, np.int32) for _ in range(2))
    for char in set("".join(words)):
        first[ord(char)] = ids.get(char, 0)
        rest[ord(char)] = ids.get(job.prefix + char, 0)
    rows = np.full((len(codes), 7), NONE, np.int32)
    rows[:, SYMBOL] = rest[codes]
    rows[ends - lengths, SYMBOL] = first[codes[ends - lengths]]
    rows[:, AFTER] = np.arange(1, len(codes) + 1)
    rows[:, BEFORE] = np.arange(-1, len(codes) - 1)
    rows[ends - 1, AFTER] = NONE
    rows[ends - lengths, BEFORE] = NONE
    rows[:, WORD] = np.repeat(np.arange(len(words)), lengths)
    return rows


def _slots(size: int) -> dict[str, Any]:
    """Arrays for slots, all free."""
    return {
        "slots": np.full((size, CHAIN + 4), NONE, np.int32),
        "slot_longs": np.zeros((size, SEEN + 3), np.int64),
        "slot_doubles": np.zeros((size, 2)),
        "heap": np.zeros(size, np.int32),
        "free": np.zeros(size, np.int32),
        "touched": np.zeros(size, np.int32),
    }


def _with_slots(s: State, more: int) -> State:
    """The same state with room for more pairs."""
    old, free = len(s.slots), int(s.now[FREE])
    wide = _slots(old + more)
    for name, array in wide.items():
        array[:old] = s._asdict()[name]
    wide["free"][free : free + more] = np.arange(old + more - 1, old - 1, -1)
    s.now[FREE] += more
    return s._replace(**wide)
