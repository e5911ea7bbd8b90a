"""The order of samples: arithmetic, the same everywhere."""

import numpy as np
import pytest

from llmt.data.order import sample_index, sample_indices


def test_every_epoch_holds_every_sample_once() -> None:
    """For each n from 1 to 500 the order of an epoch is a permutation."""
    for n in range(1, 501):
        assert sorted(sample_indices(7, n, n, n).tolist()) == list(range(n))


def test_the_scalar_and_the_array_form_agree() -> None:
    """`sample_indices` is `sample_index` for each position, across epochs."""
    for n in (1, 2, 3, 10, 257, 1000):
        expected = [sample_index(3, position, n) for position in range(5, 5 + 2 * n + 3)]
        assert sample_indices(3, 5, 2 * n + 3, n).tolist() == expected


def test_the_order_is_the_same_in_every_version() -> None:
    """These figures stand in run records, so that they never change."""
    assert sample_indices(0, 0, 12, 10).tolist() == [2, 0, 8, 1, 9, 7, 4, 5, 6, 3, 2, 7]
    assert [sample_index(42, 10**15 + step, 1_000_003) for step in range(4)] == [
        618343,
        465376,
        55126,
        430026,
    ]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """Twenty epochs of five seeds give a hundred different orders."""
    orders = {tuple(sample_indices(seed, epoch * 50, 50, 50).tolist()) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100


@pytest.mark.parametrize("n", [2, 3, 7, 16, 33, 100])
def test_each_sample_is_as_likely_at_each_place(n: int) -> None:
    """Over 4,000 epochs, chi-square of which sample comes first and last stays within five sigma."""
    epochs = 4000
    for place in (0, n - 1):
        found = [sample_index(11, epoch * n + place, n) for epoch in range(epochs)]
        counts = np.bincount(found, minlength=n)
        chi_square = float(((counts - epochs / n) ** 2).sum() / (epochs / n))
        assert chi_square < (n - 1) + 5 * (2 * (n - 1)) ** 0.5 + 5


def test_neighbours_are_torn_apart() -> None:
    """Consecutive positions do not read consecutive blocks more often than chance would."""
    order = sample_indices(1, 0, 10_000, 10_000)
    assert np.count_nonzero(np.diff(order) == 1) < 10


def test_any_integer_is_a_seed() -> None:
    """Negative seeds and seeds beyond 64 bits give a permutation as well."""
    for seed in (-1, 2**64 + 5, 2**100):
        assert sorted(sample_indices(seed, 0, 9, 9).tolist()) == list(range(9))
