"""The exact gain of a merge, and logarithms that are the same everywhere."""

import random
from decimal import Decimal, getcontext

import pytest

from llmt.tokenizers.gain import SLACK, _log, gain

KNOWN = ("0x1.550b167ecef88p+2", "0x1.0af9ec3a249a2p+12", "0x1.2562f5a6f93f6p+7")


def entropy(count: int) -> Decimal:
    """c log c."""
    return Decimal(count) * Decimal(count).ln() if count else Decimal(0)


def exact(n: int, first: int, second: int, total: int, same: bool) -> Decimal:
    """The log-likelihood after the merge minus that before, from its definition, to 60 digits."""
    getcontext().prec = 60
    if same:
        change = entropy(max(first - 2 * n, 0)) - entropy(first)
    else:
        change = entropy(first - n) - entropy(first) + entropy(second - n) - entropy(second)
    return change + entropy(n) - entropy(total - n) + entropy(total)


def counts(rng: random.Random) -> tuple[int, int, int, int, bool]:
    """Counts that a corpus can have, up to 10^12."""
    first = rng.randint(1, 10 ** rng.randint(1, 12))
    same = rng.random() < 0.2
    second = first if same else rng.randint(1, 10 ** rng.randint(1, 12))
    n = max(1, min(first, second) // rng.choice([1, 1, 2, 3, 10, 1000, 10**6]))
    return n, first, second, first + second + rng.randint(1, 10 ** rng.randint(1, 13)), same


def test_equals_the_definition() -> None:
    """The rounding error is a few units in the last place of n, far below the slack of the queue."""
    rng = random.Random(0)
    for _ in range(1500):
        n, first, second, total, same = counts(rng)
        error = abs(Decimal(gain(n, first, second, total, same)) - exact(n, first, second, total, same))
        assert error < Decimal(n) * Decimal(SLACK) / 10


def test_logarithms_are_accurate() -> None:
    """Within two units in the last place of the true logarithm, and nought at one."""
    rng = random.Random(1)
    for _ in range(1000):
        x = rng.random() * 10.0 ** rng.randint(-20, 20)
        true = Decimal(x).ln()
        assert abs(Decimal(_log(x)) - true) <= abs(true) * Decimal(2) ** -51 + Decimal(2) ** -54
    assert _log(1.0) == 0.0


def test_the_sides_are_equal() -> None:
    """Gains do not depend on which half is the left one, to the last bit."""
    rng = random.Random(2)
    for _ in range(500):
        n, first, second, total, _ = counts(rng)
        assert gain(n, first, second, total) == gain(n, second, first, total)


def test_known_bits() -> None:
    """These doubles are the same on every machine."""
    assert gain(3, 5, 7, 100).hex() == KNOWN[0]
    assert gain(1000, 2000, 4000, 10**6).hex() == KNOWN[1]
    assert gain(10, 50, 50, 10**9, True).hex() == KNOWN[2]


def test_python_and_compiled_agree_in_every_bit() -> None:
    """The compiled function gives the same doubles."""
    pytest.importorskip("numba", reason="numba is not installed: nothing to compare with")
    from llmt.tokenizers.slots import _gain

    rng = random.Random(3)
    for _ in range(3000):
        asked = counts(rng)
        assert _gain(*asked) == gain(*asked)
