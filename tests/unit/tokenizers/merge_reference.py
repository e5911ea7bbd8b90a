"""Merging, slow and plain: everything is recounted for every merge; and small corpora to compare on."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from hypothesis import strategies as st

from llmt.tokenizers.gain import gain

Found = tuple[str, str, int, Fraction | float]


@dataclass(frozen=True)
class Rule:
    """What is asked of a run, besides the words."""

    vocab_size: int
    min_frequency: int = 2
    threshold: str = "anneal"
    score: str = "likelihood"
    prefix: str = "##"


def reference_merges(words: Mapping[str, int], rule: Rule) -> tuple[list[str], list[Found]]:
    """The vocabulary in id order and the merges as (left, right, count, score)."""
    segments = {word: [word[0]] + [rule.prefix + char for char in word[1:]] for word in words if word}
    vocabulary = sorted({symbol for segment in segments.values() for symbol in segment})
    blocked = {symbol for symbol in vocabulary if rule.prefix.startswith(symbol)}
    level = rule.min_frequency
    if rule.threshold == "anneal":
        level = max(level, sum(words.values()) // 50 + 1)
    merges: list[Found] = []
    while len(vocabulary) < rule.vocab_size:
        best = _best(segments, words, vocabulary, blocked, (rule.score, level))
        if best is None:
            if level == rule.min_frequency:
                break
            level = max(rule.min_frequency, min(level * 4 // 5, level - 1))
            continue
        left, right = best[:2]
        piece = left + right.removeprefix(rule.prefix)
        assert piece not in vocabulary, f"{piece!r} was made by two different pairs"
        vocabulary.append(piece)
        merges.append(best)
        segments = {word: _replace(segment, left, right, piece) for word, segment in segments.items()}
    return vocabulary, merges


def _best(
    segments: Mapping[str, list[str]],
    words: Mapping[str, int],
    vocabulary: list[str],
    blocked: set[str],
    rule: tuple[str, int],
) -> Found | None:
    symbols: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for word, segment in segments.items():
        for symbol in segment:
            symbols[symbol] += words[word]
        for pair in pairwise(segment):
            pairs[pair] += words[word]
    ids = {symbol: number for number, symbol in enumerate(vocabulary)}
    total = sum(symbols.values())
    best, best_key = None, None
    for (left, right), count in pairs.items():
        if count < rule[1] or left in blocked:
            continue
        first, second = symbols[left], symbols[right]
        score: Fraction | float
        if rule[0] == "likelihood":
            score = Fraction(count, first * second)
        else:
            score = gain(count, first, second, total, left == right)
        key = (-score, -count, ids[left], ids[right])
        if best_key is None or key < best_key:
            best, best_key = (left, right, count, score), key
    return best


def _replace(segment: list[str], left: str, right: str, piece: str) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(segment):
        if segment[position : position + 2] == [left, right]:
            merged.append(piece)
            position += 2
        else:
            merged.append(segment[position])
            position += 1
    return merged


ALPHABETS = ["a", "ab", "ab#", "#", "abcdef", "éè\u0301ab", "日本語のこ", "👩\u200d🚀🏽x", "the quick#\n"]
PREFIXES = ["##", "##", "##", "#", "@@", "ab"]


def random_corpus(seed: int) -> dict[str, int]:
    """A small word table: random letters, runs, ties, huge counts or near-equal counts."""
    rng = random.Random(seed)
    alphabet = rng.choice(ALPHABETS)
    top = rng.choice([1, 2, 10, 1000, 10**9, 10**12])
    words: dict[str, int] = {}
    for _ in range(rng.randint(1, 40)):
        word = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9)))
        if rng.random() < 0.15:
            word = rng.choice(alphabet) * rng.randint(2, 12)
        words[word] = rng.randint(1, top)
    return words


def random_rule(seed: int, threshold: str, score: str) -> Rule:
    """A rule to go with `random_corpus(seed)`."""
    rng = random.Random(-seed - 1)
    size = 100 if rng.random() < 0.7 else 40
    return Rule(size, rng.choice([1, 2, 2, 5]), threshold, score, rng.choice(PREFIXES))


WORD = st.text(st.sampled_from("aab#é日👩\u200d"), min_size=1, max_size=8)
COUNT = st.one_of(st.integers(1, 6), st.integers(1, 10**12), st.sampled_from([2**26 - 1, 2**26, 2**32 + 1, 10**12]))
CORPORA = st.dictionaries(WORD, COUNT, min_size=1, max_size=12)
RULES = st.builds(
    Rule,
    st.just(90),
    st.sampled_from([1, 2, 5]),
    st.sampled_from(["anneal", "fixed"]),
    st.sampled_from(["likelihood", "gain"]),
    st.sampled_from(PREFIXES),
)
