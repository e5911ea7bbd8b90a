"""docs/data.md says what is so: its files are read, and its commands run on them."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.]+)`[^\n]*\n\n```(?:csv|jsonl|json)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
WRITTEN = ["table.parquet", "table.arrow", "story.txt.gz"]
PROGRAM = "".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if any(f"--data {name} " in line for name in [*FILES, *WRITTEN])
]


def test_each_format_has_its_command() -> None:
    """The search still finds them."""
    assert list(FILES) == ["story.csv", "asked.jsonl", "instructions.json", "chat.jsonl", "pairs.jsonl"]
    assert all(any(f"--data {name} " in line for line in COMMANDS) for name in [*FILES, *WRITTEN])


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_runs(inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """On the file that the page shows or writes; what is learnt is what the page says."""
    monkeypatch.chdir(tmp_path)
    exec(compile(PROGRAM, str(PAGE), "exec"), {})
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    words = shlex.split(line)[1:]
    result = inside(*words, "--json")
    assert result.code == 0, result.err
    if words[1] != "inspect":
        return
    stretches = [stretch for row in json.loads(result.out)["rows"] for stretch in row["stretches"]]
    learnt = {s["text"].removesuffix("<|endoftext|>").strip() for s in stretches if s["kind"] == "trained"}
    masked = "".join(s["text"] for s in stretches if s["kind"] == "masked")
    said = {
        "asked.jsonl": ({"Eight.", "Six."}, "Question: How many legs has a spider?\nAnswer:"),
        "instructions.json": ({"white", "Hello!"}, "### Instruction:\nName the colour.\n\n### Input:\nsnow\n"),
        "chat.jsonl": ({"Hello.<|im_end|>", "Later.<|im_end|>"}, "<|im_start|>user\nHi!<|im_end|>\n"),
        "pairs.jsonl": ({"Eight.", "Six, as I was told.", "Six.", "None."}, "How many legs has a spider?How many legs"),
    }
    said |= dict.fromkeys(("table.parquet", "table.arrow"), ({"Eight.", "Six."}, "Question: And an ant?\nAnswer:"))
    name = next(name for name in [*FILES, *WRITTEN] if name in words)
    if name in said:
        assert learnt == said[name][0]
        assert said[name][1] in masked
    else:
        assert any(text.startswith("The captain wrote a letter.") for text in learnt)
