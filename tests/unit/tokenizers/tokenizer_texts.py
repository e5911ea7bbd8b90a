"""Text that is hard on tokenizers."""

PROSE = """The miller's daughter said that she'd count 1,234 sacks before the day was over, and 56 more after.
"Who will carry them?" asked the boy; nobody answered. ## Heading #1 ###
\tdef carry(sack): return sack + 1   # a comment
Über die Brücke ging ein müder Müller. 今日は天気がいいです。 你好，世界！ Привет, мир. नमस्ते दुनिया
"""
TEXTS = [PROSE] * 3 + [PROSE.replace("carry", "lift"), PROSE.upper()]

HARD_STRINGS = [
    "",
    " ",
    "hello world",
    "  two  spaces  ",
    "tabs\tand\nnew\r\nlines\n\n\n",
    "#",
    "##",
    "###",
    "##a",
    "a##b #define # x",
    "I'll don't WE'VE 12345678",
    "caf\u00e9 cafe\u0301",
    "日本語のテキスト",
    "नमस्ते مرحبا ไทย",
    "👩\u200d👩\u200d👧 🏽🇩🇪 ❤\ufe0f",
    "nul\x00 bell\x07 \x1c\x85 \u00a0\u3000\u2028",
    "\ufeffbom \ue000 \U0010ffff",
    "a" * 300,
    "日" * 120,
    "-" * 90 + " " * 90 + "x",
]
