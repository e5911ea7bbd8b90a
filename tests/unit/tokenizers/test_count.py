"""Counting words in two stages, in one process or several, against counting them directly."""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, TEXTS

from llmt.errors import OutOfMemoryError
from llmt.tokenizers import count, table
from llmt.tokenizers.count import count_words
from llmt.tokenizers.pretokenize import PATTERNS, WordStyle, normalized
from llmt.tokenizers.progress import TrainingProgress

STYLES: tuple[WordStyle, ...] = ("gpt4", "gpt2", "bert")
LETTERS = "ab1' \t\n\r!#\u00a0\u0085\x1c\u2028\u3000ée\u0301日नि😀\u200d\ufe0f"
AWKWARD = st.text(alphabet=LETTERS, max_size=40)
ASCII = st.text(alphabet=[*map(chr, range(128)), *" \n\n''stSTRrEeVvlLmMdD"], max_size=60)


def direct(texts: list[str], style: str) -> dict[str, int]:
    """The pattern over every whole text at once."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(regex.findall(PATTERNS[style], normalized(text) if style == "bert" else text))
    return dict(words)


@pytest.mark.parametrize("style", STYLES)
@given(texts=st.lists(AWKWARD | ASCII, max_size=3))
@settings(max_examples=400, deadline=None)
def test_two_stages_equal_one(style: WordStyle, texts: list[str]) -> None:
    """Cutting at spaces and lines first finds the same words as the pattern alone."""
    assert count_words(texts, style) == direct(texts, style)


@pytest.mark.parametrize("style", STYLES)
def test_every_character_beside_spaces_and_letters(style: WordStyle) -> None:
    """No character makes a cut wrong, whatever the two libraries take for white space."""
    texts = [f"a {char} b{char} c {char}{char} \n{char}\n x{char}'s" for char in map(chr, range(0x3100))]
    for start in range(0, len(texts), 500):
        part = texts[start : start + 500]
        assert count_words(part, style) == direct(part, style)


@pytest.mark.parametrize("style", STYLES)
def test_blocks_do_not_cut_words(style: WordStyle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents longer than a block, and tables emptied often, give the same counts."""
    text = " ".join([*TEXTS, *HARD_STRINGS])
    whole = direct([text, text], style)
    monkeypatch.setattr(table, "PARTS", 10)
    for size in (1, 7, 100):
        monkeypatch.setattr(count, "BLOCK_CHARACTERS", size)
        assert count_words([text, text], style) == whole


def long_text(seed: int, characters: int) -> str:
    """Words, spaces, tabs, blank lines, no spaces for long, in several scripts."""
    rng = random.Random(seed)
    stems = ["the", "miller's", "x", "日本語", "नमस्ते", "## #", "e\u0301", "1234", "👩\u200d🚀", "ſ", "\x1c", "--\n"]
    gaps = [" ", " ", " ", "  ", "\n", "\n\n", " \n\t ", "\t", "", "\r\n"]
    parts = []
    size = 0
    while size < characters:
        parts.append(rng.choice(stems) + str(rng.randint(0, 300)) + rng.choice(gaps))
        size += len(parts[-1])
    return "".join(parts)


@pytest.mark.parametrize("style", STYLES)
def test_processes_find_the_same(style: WordStyle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process and two give the same table, which is the direct one."""
    monkeypatch.setattr(count, "PROCESSES_FROM", 100_000)
    monkeypatch.setattr(count, "BLOCK_CHARACTERS", 50_000)
    texts = [long_text(seed, 60_000) for seed in range(5)] + ["", "\ud800 lone"]
    one = count_words(texts, style, 1)
    assert one == direct(texts, style)
    assert count_words(texts, style, 2) == one


def test_real_text_counts(real_text: str) -> None:
    """On a real document, whole and by lines, the two-stage table equals the direct one."""
    for style in STYLES:
        for texts in ([real_text], real_text.split("\n")):
            assert count_words(texts, style) == direct(texts, style)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent: Windows has none to send")
def test_a_dead_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a counting process is killed the call ends with an error that says so, and nothing is left running."""
    monkeypatch.setattr(count, "PROCESSES_FROM", 1000)
    monkeypatch.setattr(count, "BLOCK_CHARACTERS", 1000)

    def texts() -> Iterator[str]:
        yield "word " * 1000
        killed = False
        while True:
            children = psutil.Process().children()
            if children and not killed:
                os.kill(children[0].pid, signal.SIGKILL)
                killed = True
            yield "more words " * 1000

    with pytest.raises(OutOfMemoryError, match=r"num_proc: worker 1 died \(signal 9, maybe since") as caught:
        count_words(texts(), "gpt4", 2)
    assert caught.value.exit_code == 7
    assert psutil.Process().children() == []


def test_an_error_in_the_text_ends_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the source of the texts raises comes out, and no process or thread stays."""
    monkeypatch.setattr(count, "PROCESSES_FROM", 1000)
    threads = threading.active_count()

    def texts() -> Iterator[str]:
        yield "word " * count.BLOCK_CHARACTERS
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        count_words(texts(), "gpt4", 2)
    assert psutil.Process().children() == []
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters read so far, about once in a million, and all of them at the end."""
    monkeypatch.setattr(count, "BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr(count, "REPORT_CHARACTERS", 2000)
    calls: list[TrainingProgress] = []
    count_words(["word " * 10] * 100, "gpt2", progress=calls.append)
    assert [call.done for call in calls] == [2000, 4000, 5000]
    assert {call.stage for call in calls} == {"reading"}
