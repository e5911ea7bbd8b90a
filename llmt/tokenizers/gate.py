"""trained tokenizer, as saved -> what it loses, how well it packs text; refused where it breaks its word."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmt.errors import DataError, ModelFileError
from llmt.tokenizers.base import Tokenizer, well_formed
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.huggingface import ids_in_transformers
from llmt.tokenizers.load import load_tokenizer

HARD_TEXTS = (
    "Hello, world! It's 3.14 o'clock; I'll pay $1,234,567.89 (maybe).",
    "naïve café, cafe\u0301, Ærøskøbing, Łódź, Đặng Thùy Trâm, ﬁne ﬂow",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "עברית עִם נִקּוּד",
    "اللُّغَةُ العَرَبِيَّة ١٢٣ فارسی",
    "हिन्दी में परीक्षण क्षत्रिय १२३",
    "বাংলা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം",
    "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค",
    "汉字漢字の読み方、カタカナとひらがな。ー々〆",
    "한국어 조선글 \u1112\u1161\u11ab",
    "ქართული հայերեն አማርኛ བོད་སྐད ខ្មែរ",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪🇯🇵 ❤\ufe0f 1\ufe0f\u20e3 🏴\U000e0067\U000e0062\U000e007f",
    "  leading, trailing  \t tabs\t\tand\n\nlines\r\n\r\nmixed \u00a0\u2003\u3000 spaces  ",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f separators \x1c\x1d \x85 \u2028",
    "\ufeffmark \u200b \ue000 \uffff \U0010ffff",
    "# ## ### ##a a## #define X # [UNK] [SEP] [CLS] <|endoftext|> <|pad|> <s> </s>",
    "x" * 500,
    "多" * 300,
    "https://example.org/" + "very-long-path/" * 20 + "?q=1#top",
    "def f(x):\n    return {'a': [x ** 2 for x in range(10)]}  # comment\n",
)
"""Text that tokenizers stumble over: every script, emoji with joiners, white space, control characters, NUL,
words without end, and the names of special tokens."""


_GAP = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that decoding does not give back.

    Attributes:
        kind: `spacing`, `unicode form` (composed and decomposed spellings become one) or `characters`.
        texts: In how many of the checked texts.
        examples: The lost characters; for other kinds the beginning of one text.
    """

    kind: str
    texts: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GateReport:
    """What was found before the tokenizer was published.

    Attributes:
        vocab_size: Ids.
        held_out: The text measured on was kept out of training; a very small corpus is measured on itself.
        characters: Length of that text.
        lines: Its lines.
        characters_per_token: On it, spaces included.
        bytes_per_token: On it, in UTF-8.
        unknown_share: Part of its tokens that is the unknown token, 0 to 1.
        vocabulary_used: Part of the vocabulary that occurs in it, 0 to 1.
        hard_texts: Number of hard texts that were tried as well.
        losses: What does not come back; empty for a lossless tokenizer.
    """

    vocab_size: int
    held_out: bool
    characters: int
    lines: int
    characters_per_token: float
    bytes_per_token: float
    unknown_share: float
    vocabulary_used: float
    hard_texts: int
    losses: tuple[Loss, ...]


def check_tokenizer(tokenizer: FastTokenizer, directory: Path, texts: Sequence[str], *, held_out: bool) -> GateReport:
    """Compare a tokenizer with what was saved of it, and try it on text.

    Args:
        tokenizer: As it was trained.
        directory: Where it was saved.
        texts: Text to measure on.
        held_out: Whether that text was kept out of training.

    Raises:
        ModelFileError: The saved one differs, transformers reads other ids, or one that should give every text
            back does not.
        DataError: No text to measure on.
    """
    lines = [line for text in texts for line in well_formed(text).splitlines(keepends=True)]
    tried = [*lines, *HARD_TEXTS]
    ids = tokenizer.encode_batch(tried)
    _require_equal(tokenizer, directory, tried, ids)
    back = tokenizer.decode_batch(ids, skip_special_tokens=False)
    wrong = [(text, found) for text, found in zip(tried, back, strict=True) if text != found]
    if wrong and tokenizer.is_lossless:
        text, found = wrong[0]
        raise ModelFileError(f"tokenizer: {text[:60]!r} came back as {found[:60]!r}", "this is a defect: report it")
    measured = ids[: len(lines)]
    tokens = sum(map(len, measured))
    if tokens == 0:
        raise DataError("held-out text: no token in it", "give more text")
    used = set().union(*measured)
    unknown = sum(row.count(tokenizer.unk_token_id) for row in measured) if tokenizer.unk_token_id is not None else 0
    return GateReport(
        vocab_size=tokenizer.vocab_size,
        held_out=held_out,
        characters=sum(map(len, lines)),
        lines=len(lines),
        characters_per_token=sum(map(len, lines)) / tokens,
        bytes_per_token=sum(len(line.encode()) for line in lines) / tokens,
        unknown_share=unknown / tokens,
        vocabulary_used=len(used) / tokenizer.vocab_size,
        hard_texts=len(HARD_TEXTS),
        losses=tuple(_losses(wrong, tokenizer)),
    )


def _require_equal(tokenizer: FastTokenizer, directory: Path, texts: Sequence[str], ids: list[list[int]]) -> None:
    saved = load_tokenizer(directory)
    if not isinstance(saved, FastTokenizer) or saved.fingerprint() != tokenizer.fingerprint():
        raise ModelFileError(f"{directory}: the saved tokenizer is not the trained one", "this is a defect: report it")
    readers = {"llmt": saved.encode_batch(texts), "transformers": ids_in_transformers(directory, texts)}
    for name, found in readers.items():
        for text, ours, theirs in zip(texts, ids, found, strict=True):
            if ours != theirs:
                raise ModelFileError(
                    f"{directory}: {name} reads other ids from {text[:60]!r}", "this is a defect: report it"
                )


def _losses(wrong: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[Loss]:
    """What differs between texts and what came back, by kind; a text may suffer several."""
    unknown = tokenizer.special_tokens.get("unk_token", "")
    counts: Counter[str] = Counter()
    spaced: list[str] = []
    missing: Counter[str] = Counter()
    for text, found in wrong:
        composed = unicodedata.normalize("NFC", text)
        if composed != text:
            counts["unicode form"] += 1
        wanted = Counter(char for char in composed if not char.isspace())
        lost = wanted - Counter(found.replace(unknown, "") if unknown and unknown not in text else found)
        if lost:
            counts["characters"] += 1
            missing += lost
        if _GAP.findall(composed) != _GAP.findall(found):
            counts["spacing"] += 1
            spaced.append(text)
    examples = {
        "spacing": (spaced[0].strip()[:40],) if spaced else (),
        "characters": tuple(char for char, _ in missing.most_common(12)),
    }
    return [Loss(kind, counts[kind], examples.get(kind, ())) for kind in sorted(counts)]
