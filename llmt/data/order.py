"""(seed, position) -> which sample: the order of training, as arithmetic.

The order of an epoch is a permutation of its n samples that is computed, not stored: a balanced Feistel
network (Luby and Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", 1988)
over the smallest even power of two that holds n, walked along until it lands below n (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002). The round function is the finalizer of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Integers alone take
part, so the order is the same on every machine and in every version.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def sample_index(seed: int, position: int, n: int) -> int:
    """Which of `n` samples stands at `position` of the endless order; each epoch of `n` holds every one once.

    Args:
        seed: The seed of the run.
        position: From 0; `position // n` is the epoch.
        n: Samples in an epoch, at least 1.
    """
    epoch, place = divmod(position, n)
    return _permute(place, n, round_keys(seed, epoch))


def sample_indices(seed: int, start: int, count: int, n: int) -> NDArray[np.int64]:
    """`sample_index` of the positions `start` to `start + count - 1`, as int64 of shape `(count,)`."""
    parts, end = [], start + count
    while start < end:
        epoch, place = divmod(start, n)
        stop = min(n, place + end - start)
        parts.append(_permute_all(np.arange(place, stop, dtype=np.uint64), n, round_keys(seed, epoch)))
        start += stop - place
    return np.concatenate(parts).astype(np.int64)


def round_keys(seed: int, epoch: int) -> list[int]:
    """The keys of one epoch's permutation."""
    state = _mix(_mix(seed & _MASK) ^ (epoch * _GOLDEN & _MASK))
    return [_mix(state + (number + 1) * _GOLDEN) for number in range(_ROUNDS)]


def _half_bits(n: int) -> int:
    """Half the width of the network's domain."""
    return max(1, ((n - 1).bit_length() + 1) // 2)


def _mix(value: int) -> int:
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _permute(place: int, n: int, keys: list[int]) -> int:
    bits = _half_bits(n)
    low = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & low
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & low)
        place = left << bits | right
        if place < n:
            return place


def _mix_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _permute_all(places: NDArray[np.uint64], n: int, keys: list[int]) -> NDArray[np.uint64]:
    bits = np.uint64(_half_bits(n))
    low = (np.uint64(1) << bits) - np.uint64(1)
    walking = np.ones(len(places), dtype=bool)
    while walking.any():
        left, right = places[walking] >> bits, places[walking] & low
        for key in keys:
            left, right = right, left ^ (_mix_all(right + np.uint64(key)) & low)
        places[walking] = left << bits | right
        walking = places >= n
    return places
