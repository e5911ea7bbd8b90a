"""Patterns that cut text into words: every script, and alike in Python, which counts, and in Rust, which encodes."""

import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, TEXTS
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from llmt.tokenizers.pretokenize import PATTERNS, WordStyle, normalized, split_words

STYLES: tuple[WordStyle, ...] = ("gpt4", "gpt2", "bert")

# text -> its words
SCRIPTS = {
    "Hello, wörld's 2 naïve cafés": ["Hello", ",", "wörld", "'", "s", "2", "naïve", "cafés"],
    "Привет, мир: ёлка": ["Привет", ",", "мир", ":", "ёлка"],
    "Ἐν ἀρχῇ ἦν ὁ λόγος·": ["Ἐν", "ἀρχῇ", "ἦν", "ὁ", "λόγος", "·"],
    "בְּרֵאשִׁית בָּרָא": ["בְּרֵאשִׁית", "בָּרָא"],
    "السَّلَامُ عَلَيْكُمْ، ١٢٣": ["السَّلَامُ", "عَلَيْكُمْ", "،", "١٢٣"],
    "می\u200cخواهم بروم": ["می\u200cخواهم", "بروم"],
    "नमस्ते दुनिया। क्\u200dष": ["नमस्ते", "दुनिया", "।", "क्\u200dष"],
    "สวัสดีชาวโลก น้ำ": ["สวัสดีชาวโลก", "น้ำ"],
    "안녕하세요 세계": ["안녕하세요", "세계"],
    "你好，世界": ["你", "好", "，", "世", "界"],
    "吾輩は猫である。スーパーの人々": ["吾", "輩", "は", "猫", "である", "。", "スーパーの", "人", "々"],
    "葛\U000e0100城": ["葛\U000e0100", "城"],
    "ｶﾞｷﾞ２０": ["ｶﾞｷﾞ２０"],
}
EMOJI = [
    "😀",
    "👩\u200d👩\u200d👧\u200d👦",
    "👩🏽\u200d🚀",
    "👍🏿",
    "🇩🇪",
    "❤\ufe0f",
    "❤\ufe0f\u200d🔥",
    "🏳\ufe0f\u200d🌈",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "5\ufe0f\u20e3",
    "#\ufe0f\u20e3",
    "⛹🏿\u200d♀\ufe0f",
    "©\ufe0f",
]
LETTERS = "ab1'- \n.é\u0301ि日々のー가ไน้\u200c\u200d\ufe0f\u20e3#5👩🏽🚀🇩🇪🏴\U000e0067\x1c\u00a0"


def library_words(text: str, style: str) -> list[str]:
    """The pieces that the Rust library cuts."""
    behavior, invert = ("removed", True) if style == "bert" else ("isolated", False)
    splitter = Split(Regex(PATTERNS[style]), behavior, invert=invert)
    return [piece for piece, _ in splitter.pre_tokenize_str(text) if piece]


@pytest.mark.parametrize("text", SCRIPTS)
def test_words_of_every_script(text: str) -> None:
    """Marks stay with their letters, joiners inside words; Han characters stand alone; composed or not is equal."""
    expected = [normalized(word) for word in SCRIPTS[text]]
    assert split_words(text, "bert") == expected
    assert split_words(unicodedata.normalize("NFD", text), "bert") == expected
    assert library_words(normalized(text), "bert") == expected


def test_an_emoji_is_one_word() -> None:
    """Families, skin tones, flags, keycaps and variation selectors hold together, and neighbours do not."""
    for emoji in EMOJI:
        assert split_words(emoji, "bert") == [emoji]
        assert split_words(f"go {emoji}!", "bert") == ["go", emoji, "!"]
    assert split_words("".join(EMOJI), "bert") == EMOJI
    assert library_words("".join(EMOJI), "bert") == EMOJI
    assert split_words("🇩🇪🇯🇵🇫", "bert") == ["🇩🇪", "🇯🇵", "🇫"]


@pytest.mark.parametrize("style", STYLES)
def test_library_cuts_alike(style: WordStyle) -> None:
    """The library cuts hard strings where Python does."""
    for text in [*TEXTS, *HARD_STRINGS, *SCRIPTS, " ".join(EMOJI)]:
        clean = normalized(text)
        assert library_words(clean, style) == regex.findall(PATTERNS[style], clean)


@pytest.mark.parametrize("style", STYLES)
@given(text=st.text(alphabet=LETTERS, max_size=30))
@settings(max_examples=300, deadline=None)
def test_library_cuts_generated_text_alike(style: WordStyle, text: str) -> None:
    """Joiners, marks, tags and keycap signs in any order are cut alike, too."""
    assert library_words(text, style) == regex.findall(PATTERNS[style], text)


@pytest.mark.parametrize("style", STYLES)
def test_library_cuts_every_character_alike(style: WordStyle) -> None:
    """Every character up to U+3400 and a sample of the others is cut alike.

    Characters that this Python's Unicode does not know are left out: the two libraries' tables may differ in age.
    """
    sample = [*range(0x3400), *range(0x3400, 0xD800, 61), *range(0xE000, 0x20000, 7), *range(0x20000, 0x110000, 997)]
    known = [chr(code) for code in sample if unicodedata.category(chr(code)) != "Cn"]
    assert len(known) > 17_000
    for start in range(0, len(known), 200):
        text = "\n".join(f"a{char}b {char} !{char}1{char}" for char in known[start : start + 200])
        assert library_words(text, style) == regex.findall(PATTERNS[style], text)


def test_both_spellings_are_one_word() -> None:
    """A letter with its accent is the same word, composed or not."""
    assert split_words("caf\u00e9", "bert") == split_words("cafe\u0301", "bert") == ["caf\u00e9"]
