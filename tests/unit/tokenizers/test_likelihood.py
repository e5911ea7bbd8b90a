"""The incremental trainer against the naive one, with both engines."""

import hashlib
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from merge_reference import CORPORA, RULES, Rule, random_corpus, random_rule, reference_merges

from llmt.errors import ConfigError, MissingPackageError
from llmt.tokenizers.likelihood import COMPILED_FROM, Engine, MergeResult, Score, Symbols, Threshold, train_merges
from llmt.tokenizers.progress import TrainingProgress

ENGINES: list[Engine] = ["python", "compiled"]
SCORES: list[Score] = ["likelihood", "gain"]
CORPORA_EACH = 90


def need(engine: str) -> None:
    """Skip what numba must do where there is none."""
    if engine == "compiled" and find_spec("numba") is None:
        pytest.skip("numba is not installed: the compiled engine cannot run")


def large_table(times: int) -> dict[str, int]:
    """Words of `COMPILED_FROM` characters together."""
    return {f"{number:06d}": times for number in range(COMPILED_FROM // 6 + 1)}


def trained(words: dict[str, int], rule: Rule, engine: str, size: int) -> MergeResult:
    """A run by `rule`, for `size` ids or those that the rule asks for."""
    return train_merges(
        words,
        max(size, rule.vocab_size),
        rule.min_frequency,
        rule.threshold,
        rule.score,
        engine,
        Symbols(rule.prefix),
    )


def compare(words: dict[str, int], rule: Rule, engine: str) -> int:
    """Assert that a run equals the reference; returns how many merges there were."""
    vocabulary, merges = reference_merges(words, rule)
    result = trained(words, rule, engine, len(vocabulary))
    assert result.engine == engine
    assert result.vocabulary == vocabulary
    found = [(merge.left, merge.right, merge.count, merge.score) for merge in result.merges]
    assert found == [(left, right, count, float(score)) for left, right, count, score in merges]
    return len(merges)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("threshold", ["anneal", "fixed"])
def test_equals_the_reference(threshold: Threshold, score: Score, engine: Engine) -> None:
    """Merges, counts, scores and vocabulary equal the recount-everything reference: 360 corpora an engine."""
    need(engine)
    start = CORPORA_EACH * (SCORES.index(score) * 2 + (threshold == "fixed"))
    merges = sum(
        compare(random_corpus(seed), random_rule(seed, threshold, score), engine)
        for seed in range(start, start + CORPORA_EACH)
    )
    assert merges > 2000
    print(f"{engine}, {score}, {threshold}: {CORPORA_EACH} corpora, {merges} merges, 0 differ")


@pytest.mark.parametrize("engine", ENGINES)
def test_generated_corpora_equal_the_reference(engine: Engine) -> None:
    """So do corpora that hypothesis looks for, with counts around 2^26 and 2^32 and up to 10^12."""
    need(engine)
    seen = {"corpora": 0, "merges": 0}

    @given(words=CORPORA, rule=RULES)
    @settings(max_examples=150, deadline=None, derandomize=True)
    def search(words: dict[str, int], rule: Rule) -> None:
        seen["corpora"] += 1
        seen["merges"] += compare(words, rule, engine)

    search()
    assert seen["corpora"] >= 100
    print(f"{engine}: {seen['corpora']} corpora, {seen['merges']} merges, 0 differ")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("threshold", ["anneal", "fixed"])
def test_real_text_equals_the_reference(threshold: Threshold, score: Score, engine: Engine) -> None:
    """On words of a real document the merges equal the reference's too."""
    need(engine)
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None:
        pytest.skip("TEST_DATA_DIR is not set: no real text to compare on")
    text = (Path(folder) / "botchan.txt").read_text(encoding="utf-8")[2000:8000]
    words: dict[str, int] = {}
    for word in text.split():
        words[word] = words.get(word, 0) + 1
    assert compare(words, Rule(200, 2, threshold, score), engine) > 50


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_that_one_double_cannot_tell_apart(engine: Engine) -> None:
    """Of two scores with the same double the larger fraction wins, although its pair is the rarer one."""
    need(engine)
    n = 10**9
    words = {"ab": n, "a": 1, "xb": 7, "cd": n + 1, "c": 3, "xd": 4, "x": 10**12}
    assert n / ((n + 1) * (n + 7)) == (n + 1) / ((n + 4) * (n + 5))
    compare(words, Rule(9, 1, "fixed"), engine)
    result = train_merges(words, 9, 1, "fixed", engine=engine)
    assert [merge.piece for merge in result.merges[:2]] == ["ab", "cd"]
    assert result.merges[0].score == result.merges[1].score


@pytest.mark.parametrize("engine", ENGINES)
def test_ties_below_one_hub(engine: Engine) -> None:
    """Pairs of one frequent symbol whose shares have the same double are ordered as fractions, too."""
    need(engine)
    fibonacci = [1, 1]
    while len(fibonacci) < 52:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    for k in (48, 49):
        f = fibonacci[k - 2 : k + 2]
        assert f[2] / f[3] == f[1] / f[2]
        # c(##x) = f[3] and c(##y) = f[2]; in words of their own after a letter that is never merged first
        words = {"hx": f[2], "qx": f[1], "hy": f[1], "qy": f[0], "h": 10**11, "q": 10**12}
        compare(words, Rule(12, 1, "fixed"), engine)


def test_counts_beyond_every_machine_word() -> None:
    """Counts above 2^64 and keys below the smallest double: the Python engine stays exact."""
    for big in (2**70, 10**200):
        words = {"ab": big, "cd": big + 1, "a": 3, "b": 5, "c": 3, "d": 5, "abd": 7}
        for threshold in ("anneal", "fixed"):
            compare(words, Rule(20, 1, threshold), "python")
    assert train_merges(large_table(2**50), 60).engine == "python"
    need("compiled")
    with pytest.raises(ConfigError, match="engine compiled"):
        train_merges({"ab": 2**60}, 4, engine="compiled")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_smaller_vocabulary_begins_the_larger(engine: Engine) -> None:
    """The first merges do not depend on how many are wanted."""
    need(engine)
    words = random_corpus(3) | random_corpus(7) | random_corpus(11)
    large = train_merges(words, 300, 1, engine=engine)
    for size in (100, 150):
        small = train_merges(words, size, 1, engine=engine)
        assert small.vocabulary == large.vocabulary[:size]
        assert small.merges == large.merges[: len(small.merges)]


def test_order_of_words_does_not_matter() -> None:
    """Shuffling the word table changes nothing."""
    words = random_corpus(3) | random_corpus(11)
    items = list(words.items())
    random.Random(0).shuffle(items)
    for score in SCORES:
        assert train_merges(dict(items), 200, 1, score=score) == train_merges(words, 200, 1, score=score)


@pytest.mark.parametrize("engine", ENGINES)
def test_hash_seed_does_not_matter(engine: Engine) -> None:
    """Five processes with different hash seeds learn the same merges."""
    need(engine)
    code = (
        "from merge_reference import random_corpus\n"
        "from llmt.tokenizers.likelihood import train_merges\n"
        "for seed in range(8):\n"
        "    for score in ('likelihood', 'gain'):\n"
        f"        print(train_merges(random_corpus(seed), 150, 1, 'anneal', score, {engine!r}))"
    )
    here = Path(__file__).parent
    outputs = set()
    for seed in range(5):
        path = os.pathsep.join([str(here), str(here.parents[2])])
        env = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONIOENCODING": "utf-8", "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        outputs.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(outputs) == 1


def test_vocabulary_smaller_than_the_alphabet() -> None:
    """A size below the alphabet is refused and the message names the minimum."""
    with pytest.raises(ConfigError, match="need 3") as caught:
        train_merges({"abc": 1}, 2)
    assert "at least 3" in caught.value.hint


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numba the compiled engine is refused with what to install; `auto` does without."""
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MissingPackageError, match="numba") as caught:
        train_merges({"ab": 5}, 4, engine="compiled")
    assert "llmt[fast]" in caught.value.hint
    assert train_merges(large_table(5), 60).engine == "python"


def test_auto_compiles_only_what_pays() -> None:
    """A large table goes to the compiled engine, a small one does not."""
    need("compiled")
    assert train_merges({"ab": 5}, 4).engine == "python"
    assert train_merges(large_table(5), 60).engine == "compiled"


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_merge(engine: Engine) -> None:
    """No words, one character, no pair that is frequent enough: the alphabet alone, and no error."""
    need(engine)
    assert train_merges({}, 5, engine=engine).vocabulary == []
    assert train_merges({"": 3, "a": 1}, 5, engine=engine).vocabulary == ["a"]
    assert train_merges({"ab": 3, "cd": 2}, 50, 4, engine=engine).merges == []
    assert train_merges({"ab": 3}, 2, engine=engine).merges == []


@pytest.mark.parametrize("engine", ENGINES)
def test_alphabet_is_kept_and_progress_is_told(engine: Engine) -> None:
    """Symbols that never occur are in the vocabulary, and the callback ends at the size reached."""
    need(engine)
    calls: list[TrainingProgress] = []
    symbols = Symbols(alphabet=("z", "##z"), reserved=2)
    result = train_merges({"ab": 5}, 10, engine=engine, symbols=symbols, progress=calls.append)
    assert result.vocabulary == ["##b", "##z", "a", "z", "ab"]
    assert calls == [TrainingProgress("merging", 7, 10, "ab")]
