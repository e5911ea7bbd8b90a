"""Arithmetic of the compiled engine; its merges are compared in test_likelihood.py."""

import random

import pytest
from merge_reference import random_corpus

from llmt.tokenizers.likelihood import train_merges

np = pytest.importorskip("numpy")
pytest.importorskip("numba", reason="numba is not installed: the compiled engine cannot run")

from llmt.tokenizers import slots  # noqa: E402


def test_products_of_three_counts_are_exact() -> None:
    """The three limbs hold the product that Python's integers have."""
    rng = random.Random(0)
    edges = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**53 - 1]
    for number in range(4000):
        factors = [rng.choice(edges) if number % 2 else rng.getrandbits(rng.randint(1, 53)) for _ in range(3)]
        high, middle, low = slots._product(*map(np.uint64, factors))
        assert (int(high) << 128) + (int(middle) << 64) + int(low) == factors[0] * factors[1] * factors[2]


def test_room_for_pairs_grows() -> None:
    """A corpus that begins with few pairs and makes many is merged as in Python."""
    rng = random.Random(5)
    words = {"".join(rng.choice("ab") for _ in range(rng.randint(2, 30))): rng.randint(1, 50) for _ in range(3000)}
    words |= random_corpus(2)
    for threshold in ("anneal", "fixed"):
        for score in ("likelihood", "gain"):
            found = [train_merges(words, 2500, 2, threshold, score, engine) for engine in ("python", "compiled")]
            assert found[0] == found[1]
            assert len(found[0].merges) > 2000
