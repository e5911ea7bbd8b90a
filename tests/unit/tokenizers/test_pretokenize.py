"""Counting words in two stages against counting them directly."""

from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, TEXTS
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from llmt.tokenizers import pretokenize
from llmt.tokenizers.pretokenize import PATTERNS, count_words, normalized

STYLES = ("gpt4", "gpt2", "bert")
AWKWARD = st.text(alphabet="ab1' \t\n\r!#\u00a0\u0085\x1c\u2028\u3000ée\u0301日नि😀", max_size=40)


def direct(text: str, style: str) -> dict[str, int]:
    """The pattern over the whole text at once."""
    return dict(Counter(regex.findall(PATTERNS[style], normalized(text) if style == "bert" else text)))


@pytest.mark.parametrize("style", STYLES)
@given(text=AWKWARD)
@settings(max_examples=300, deadline=None)
def test_two_stages_equal_one(style: str, text: str) -> None:
    """Cutting at spaces first finds the same words as the pattern alone."""
    assert count_words([text], style) == direct(text, style)


@pytest.mark.parametrize("style", STYLES)
def test_blocks_do_not_cut_words(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document longer than a block gives the same counts as in one piece."""
    text = " ".join([*TEXTS, *HARD_STRINGS])
    whole = direct(text, style)
    for size in (1, 7, 100):
        monkeypatch.setattr(pretokenize, "BLOCK_CHARACTERS", size)
        assert count_words([text], style) == whole


@pytest.mark.parametrize("style", STYLES)
def test_library_cuts_alike(style: str) -> None:
    """The Rust library, which encodes, cuts where Python, which counts, cuts."""
    behavior, invert = ("removed", True) if style == "bert" else ("isolated", False)
    splitter = Split(Regex(PATTERNS[style]), behavior, invert=invert)
    for text in [*TEXTS, *HARD_STRINGS]:
        clean = normalized(text)
        found = [piece for piece, _ in splitter.pre_tokenize_str(clean) if piece]
        assert found == regex.findall(PATTERNS[style], clean)


def test_real_text_counts(real_text: str) -> None:
    """On a real document the two-stage table equals the direct one."""
    for style in STYLES:
        assert count_words([real_text], style) == direct(real_text, style)


def test_marks_stay_in_their_word() -> None:
    """Vowel signs and composed accents do not break a word; both spellings of é are one word."""
    assert count_words(["नमस्ते caf\u00e9 cafe\u0301"], "bert") == {"नमस्ते": 1, "caf\u00e9": 2}
