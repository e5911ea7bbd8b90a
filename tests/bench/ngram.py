"""A byte n-gram model with Witten-Bell smoothing (Witten and Bell 1991, method C), the yardstick of the main job."""

import math
from collections import Counter
from collections.abc import Iterable

END = 256
"""Follows every document, as the end-of-text token does."""


class WittenBell:
    """Interpolated from order `order` down to a uniform distribution over 257 symbols.

    Args:
        order: Longest n-gram, the predicted symbol included.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.counts: Counter[tuple[int, ...]] = Counter()
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.kinds: Counter[tuple[int, ...]] = Counter()

    def train(self, documents: Iterable[str]) -> None:
        """Count every document after the end of another."""
        for document in documents:
            symbols = (END, *document.encode(), END)
            for place in range(1, len(symbols)):
                for length in range(min(self.order - 1, place) + 1):
                    context = symbols[place - length : place]
                    gram = (*context, symbols[place])
                    self.kinds[context] += self.counts[gram] == 0
                    self.counts[gram] += 1
                    self.totals[context] += 1

    def probability(self, symbols: tuple[int, ...], place: int) -> float:
        """Probability of `symbols[place]` after what stands before it."""
        found = 1 / 257
        for length in range(min(self.order - 1, place) + 1):
            context = symbols[place - length : place]
            total = self.totals[context]
            if not total:
                break
            kinds = self.kinds[context]
            found = (self.counts[(*context, symbols[place])] + kinds * found) / (total + kinds)
        return found

    def bits_per_byte(self, documents: Iterable[str]) -> float:
        """Bits of all symbols, document ends included, for each byte of text."""
        bits, size = 0.0, 0
        for document in documents:
            symbols = (END, *document.encode(), END)
            size += len(symbols) - 2
            bits -= sum(math.log2(self.probability(symbols, place)) for place in range(1, len(symbols)))
        return bits / size
