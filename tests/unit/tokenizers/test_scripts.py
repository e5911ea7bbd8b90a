"""Which script a character has, and what each script costs."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import HARD_STRINGS, PROSE

from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.scripts import SCRIPTS, ScriptShare, measure_scripts, script_codes
from llmt.tokenizers.spans import locate

EXAMPLES = {
    "Latin": "aZéßﬁＡ", "Cyrillic": "яЖё", "Greek": "αΩ", "Hebrew": "אש", "Arabic": "عرب", "Han": "日本々",
    "kana": "ひらカナー", "Hangul": "한글", "Devanagari": "हिं", "Thai": "ไทยา", "emoji": "😀🇩🇪👍🏽",
    "digits": "09٣१๔", "punctuation": ".,!?。「+$#|", "space": " \n\t\u00a0\u3000", "other": "\x00\x1bԱა",
}  # fmt: skip


def scripts(text: str) -> list[str]:
    """The script of each character."""
    return [SCRIPTS[code] for code in script_codes(text)]


@pytest.mark.parametrize("script", EXAMPLES)
def test_characters_have_their_script(script: str) -> None:
    """Every example is in its own class, alone and after any other."""
    text = EXAMPLES[script]
    assert scripts(text) == [script] * len(text)
    for other, before in EXAMPLES.items():
        assert scripts(before + text) == [other] * len(before) + [script] * len(text), other
    assert set(EXAMPLES) == set(SCRIPTS)


def test_marks_and_joiners_belong_to_what_they_stand_on() -> None:
    """A combining accent is Latin after a letter, and a joiner is part of its emoji."""
    assert scripts("e\u0301") == ["Latin", "Latin"]
    assert scripts("👩\u200d👩\u200d👧❤\ufe0f") == ["emoji"] * 7
    assert scripts("1\ufe0f\u20e3") == ["digits"] * 3
    assert scripts("\u0301") == ["other"]


@settings(max_examples=200, deadline=None)
@given(st.characters(exclude_categories=["Cs", "M", "Cn"]))
def test_letters_agree_with_their_names(char: str) -> None:
    """A letter whose Unicode name begins with a script's is in that script, and decimal digits are digits."""
    found = scripts(char)[0]
    category, name = unicodedata.category(char), unicodedata.name(char, "")
    if category == "Nd":
        assert found == "digits"
    elif category in ("Lu", "Ll", "Lo"):
        named = {"LATIN": "Latin", "CYRILLIC": "Cyrillic", "HIRAGANA": "kana", "KATAKANA": "kana", "CJK": "Han"}
        first = name.split(" ")[0].split("-")[0]
        if first in named and "SYMBOL" not in name:
            assert found == named[first]
    elif category[0] == "Z" or char in "\n\t\r\x0b\x0c\x85":
        assert found == "space"
    elif category[0] in "PS":
        assert found != "other"


def by_hand(text: str, spans: list[tuple[int, int]]) -> dict[str, tuple[int, int, int]]:
    """Characters, tokens and characters covered of each script, counted one by one."""
    names = scripts(text)
    counts = {name: [names.count(name), 0, 0] for name in SCRIPTS}
    seen: set[int] = set()
    for start, end in spans:
        covered = [place for place in range(start, end)]
        visible = [names[place] for place in covered if names[place] != "space"]
        script = visible[0] if visible else "space" if covered else "other"
        counts[script][1] += 1
        counts[script][2] += len(set(covered) - seen)
        seen.update(covered)
    return {name: (a, b, c) for name, (a, b, c) in counts.items() if a or b}


@pytest.mark.parametrize("text", [PROSE, *(text for text in HARD_STRINGS if text)], ids=range(len(HARD_STRINGS)))
def test_shares_are_those_counted_by_hand(every_kind: dict[str, Tokenizer], text: str) -> None:
    """Characters, tokens and coverage equal a slow count; sums equal the totals."""
    for tokenizer in every_kind.values():
        ids = tokenizer.encode(text)
        spans = locate(tokenizer, text, ids)
        shares = measure_scripts(text, spans, [token_id == tokenizer.unk_token_id for token_id in ids])
        assert {s.script: (s.characters, s.tokens, s.covered) for s in shares} == by_hand(text, spans)
        assert sum(share.characters for share in shares) == len(text)
        assert sum(share.tokens for share in shares) == len(ids)
        if tokenizer.is_lossless:
            assert sum(share.covered for share in shares) == len(text)
        for share in shares:
            assert share.characters_per_token == (share.covered / share.tokens if share.tokens else None)
        unknown = sum((share.unknown_share or 0) * share.tokens for share in shares)
        assert unknown == pytest.approx(ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0)


def test_shares_of_a_small_text() -> None:
    """The rule on an example: the first visible character decides, and the space before it is covered."""
    text = "ab 日 ж!"
    spans = [(0, 2), (2, 4), (4, 5), (5, 7)]
    found = {share.script: share for share in measure_scripts(text, spans, [False, False, False, True])}
    assert found["Latin"] == ScriptShare("Latin", 2, 1, 2, 2.0, 0.0)
    assert found["Han"] == ScriptShare("Han", 1, 1, 2, 2.0, 0.0)
    assert found["space"] == ScriptShare("space", 2, 1, 1, 1.0, 0.0)
    assert found["Cyrillic"] == ScriptShare("Cyrillic", 1, 1, 2, 2.0, 1.0)
    assert found["punctuation"] == ScriptShare("punctuation", 1, 0, 0, None, None)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_every_character_has_one_script(text: str) -> None:
    """One code for each character, whatever the text."""
    assert len(script_codes(well_formed(text))) == len(text)
