"""docs/extending.md says what is so: its class is trained, opened and saved by its own commands and programs."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
WORDS = "the ship came back to the sea and the captain wrote a letter to the king of the north"


def blocks(section: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs all commands of a section in a directory with `texts.jsonl`, and gives their outputs."""
    monkeypatch.chdir(tmp_path)
    lines = [f'{{"text": "{number} {WORDS} {number * 7}"}}' for number in range(400)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))

    def run(section: str) -> list[str]:
        said, variables = [], {}
        for line in blocks(section, "sh")[0].splitlines():
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                variables[name] = value
                continue
            result = inside(*shlex.split(line)[1:], env=variables)
            assert result.code == 0, (line, result.err)
            said.append(result.out)
        return said

    return run


def test_a_model_of_ones_own(page: Any, tmp_path: Path) -> None:
    """The class of the page trains, resumes, writes and is measured through the commands, and opens in Python."""
    (tmp_path / "bag_of_words.py").write_text(blocks("A model of your own", "python")[0])
    try:
        _, _, written, measured = page("A model of your own")
        assert written.strip()
        assert "bits" in measured
        config = (tmp_path / "runs" / "words" / "config.json").read_text()
        assert '"width": 48' in config
        assert '"model_type": "bag_of_words"' in config
        names = {"BagOfWords": sys.modules["bag_of_words"].BagOfWords}
        exec(compile(blocks("A model of your own", "python")[1], str(PAGE), "exec"), names)
    finally:
        sys.modules.pop("bag_of_words", None)


def test_another_architecture_of_transformers(page: Any, tmp_path: Path) -> None:
    """A bare configuration trains from scratch, and what comes out opens in transformers."""
    from transformers import AutoModelForCausalLM

    assert page("Another architecture of transformers")[1].strip()
    exec(compile(blocks("Another architecture of transformers", "python")[0], str(PAGE), "exec"), {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "gpt")
    assert model.config.model_type == "gpt2"
    assert model.config.n_positions == 256
