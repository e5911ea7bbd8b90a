"""docs/tokenizers.md says what is so: its blocks run, and its table is recomputed."""

import os
import re
from pathlib import Path

import pytest

from llmt.tokenizers.heldout import HeldOut
from llmt.tokenizers.train import train_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "tokenizers.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| `(\w+)((?: --\w+ \w+)?)` \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in order, each with what those before it made, and their claims hold."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)


def test_the_table_has_its_rows() -> None:
    """The search for rows still finds them."""
    assert len(ROWS) == 6


@pytest.mark.slow  # figures of a page, not what the code does
@pytest.mark.parametrize(("algo", "flags", "small", "large"), ROWS)
def test_the_table_is_true(algo: str, flags: str, small: str, large: str) -> None:
    """Characters per token on held-out text, at both sizes, are those of the table to within 1 %."""
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None:
        pytest.skip("TEST_DATA_DIR is not set: no text to recompute the table on")
    text = (Path(folder) / "tinyshakespeare.txt").read_text(encoding="utf-8")
    words = flags.split()
    options = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
    for size, said in ((4096, small), (8192, large)):
        held = HeldOut([text])
        tokenizer = train_tokenizer(algo, held, vocab_size=size, **options)
        lines = "".join(held.kept).splitlines(keepends=True)
        assert f"{sum(map(len, lines)):,} held-out characters" in TEXT
        assert tokenizer.calculate_compression_ratio(lines) == pytest.approx(float(said), rel=0.01)
