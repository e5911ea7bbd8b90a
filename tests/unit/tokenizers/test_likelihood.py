"""The incremental trainer against the naive one."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from llmt.errors import ConfigError
from llmt.tokenizers.likelihood import train_merges


def reference_merges(
    words: Mapping[str, int], vocab_size: int, min_frequency: int, annealed: bool, prefix: str
) -> tuple[list[str], list[tuple[str, str, int, Fraction]]]:
    """The likelihood rule, slow and plain: everything is recounted for every merge, in exact fractions.

    Returns the vocabulary in id order and the merges as (left, right, count, score).
    """
    segments = {word: [word[0]] + [prefix + char for char in word[1:]] for word in words if word}
    vocabulary = sorted({symbol for segment in segments.values() for symbol in segment})
    blocked = {symbol for symbol in vocabulary if prefix.startswith(symbol)}
    threshold = max(min_frequency, sum(words.values()) // 50 + 1) if annealed else min_frequency
    merges: list[tuple[str, str, int, Fraction]] = []
    while len(vocabulary) < vocab_size:
        best = _best(segments, words, vocabulary, blocked, threshold)
        if best is None:
            if threshold == min_frequency:
                break
            threshold = max(min_frequency, min(threshold * 4 // 5, threshold - 1))
            continue
        left, right = best[:2]
        piece = left + right.removeprefix(prefix)
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
    threshold: int,
) -> tuple[str, str, int, Fraction] | None:
    symbols: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for word, segment in segments.items():
        for symbol in segment:
            symbols[symbol] += words[word]
        for left, right in pairwise(segment):
            pairs[left, right] += words[word]
    ids = {symbol: number for number, symbol in enumerate(vocabulary)}
    best, best_key = None, None
    for (left, right), count in pairs.items():
        if count < threshold or left in blocked:
            continue
        score = Fraction(count, symbols[left] * symbols[right])
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


def random_corpus(seed: int) -> dict[str, int]:
    """A small word table: random letters, runs, ties, huge counts or near-equal counts."""
    rng = random.Random(seed)
    alphabet = rng.choice(ALPHABETS)
    top = rng.choice([1, 2, 10, 1000, 10**9])
    words: dict[str, int] = {}
    for _ in range(rng.randint(1, 40)):
        word = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9)))
        if rng.random() < 0.15:
            word = rng.choice(alphabet) * rng.randint(2, 12)
        words[word] = rng.randint(1, top)
    return words


@pytest.mark.parametrize("block", range(8))
@pytest.mark.parametrize("threshold", ["anneal", "fixed"])
def test_equals_the_reference(block: int, threshold: str) -> None:
    """Merge sequence, counts, scores and vocabulary equal the recount-everything reference on 240 corpora."""
    for seed in range(block * 15, block * 15 + 15):
        words = random_corpus(seed)
        rng = random.Random(-seed - 1)
        least = rng.choice([1, 2, 2, 5])
        prefix = rng.choice(["##", "##", "##", "#", "@@", "ab"])
        size = 100 if rng.random() < 0.7 else 40
        vocabulary, merges = reference_merges(words, size, least, threshold == "anneal", prefix)
        result = train_merges(words, max(size, len(vocabulary)), least, threshold, prefix)
        assert result.vocabulary == vocabulary
        found = [(merge.left, merge.right, merge.count) for merge in result.merges]
        assert found == [(left, right, count) for left, right, count, _ in merges]
        assert [merge.score for merge in result.merges] == pytest.approx([float(s) for *_, s in merges])


def test_real_text_equals_the_reference() -> None:
    """On words of a real document the merges equal the reference's too."""
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None:
        pytest.skip("TEST_DATA_DIR is not set: no real text to compare on")
    text = (Path(folder) / "botchan.txt").read_text(encoding="utf-8")[2000:8000]
    words: dict[str, int] = {}
    for word in text.split():
        words[word] = words.get(word, 0) + 1
    for threshold in ("anneal", "fixed"):
        vocabulary, _ = reference_merges(words, 230, 2, threshold == "anneal", "##")
        assert train_merges(words, 230, 2, threshold).vocabulary == vocabulary


def test_scores_that_one_double_cannot_tell_apart() -> None:
    """Two scores that round to the same double are still ordered as the fractions they are."""
    big = 10**17
    words = {"ab": big, "cd": big + 1, "a": 3, "b": 5, "c": 3, "d": 5}
    vocabulary, merges = reference_merges(words, 9, 1, False, "##")
    result = train_merges(words, 9, 1, "fixed")
    assert result.vocabulary == vocabulary
    assert [merge.left for merge in result.merges] == [left for left, *_ in merges] == ["a", "c"]
    assert result.merges[0].score == result.merges[1].score


def test_order_of_words_does_not_matter() -> None:
    """Shuffling the word table changes nothing."""
    words = random_corpus(3) | random_corpus(11)
    items = list(words.items())
    random.Random(0).shuffle(items)
    assert train_merges(dict(items), 200, 1) == train_merges(words, 200, 1)


def test_hash_seed_does_not_matter() -> None:
    """Two processes with different hash seeds learn the same merges."""
    code = (
        "import sys; sys.path.insert(0, 'tests/unit/tokenizers')\n"
        "from test_likelihood import random_corpus\n"
        "from llmt.tokenizers.likelihood import train_merges\n"
        "print([train_merges(random_corpus(seed), 150, 1) for seed in range(12)])"
    )
    root = Path(__file__).parents[3]
    outputs = set()
    for seed in ("0", "1"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_vocabulary_smaller_than_the_alphabet() -> None:
    """A size below the alphabet is refused and the message names the minimum."""
    with pytest.raises(ConfigError, match="need 3") as caught:
        train_merges({"abc": 1}, 2)
    assert "at least 3" in caught.value.hint


def test_alphabet_is_kept_and_progress_is_told() -> None:
    """Symbols that never occur are in the vocabulary, and the callback ends at the size reached."""
    calls: list[tuple[int, int]] = []
    result = train_merges({"ab": 5}, 10, alphabet=["z", "##z"], progress=lambda *call: calls.append(call))
    assert result.vocabulary == ["##b", "##z", "a", "z", "ab"]
    assert calls[-1] == (5, 10)
