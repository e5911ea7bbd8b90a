"""Text that nobody here wrote, through the command line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wikitext2-valid.txt", "wagahaiwa_nekodearu.ja.txt"])
def test_a_few_steps_on_real_text(inside: Any, tmp_path: Path, tiny: tuple[str, ...], name: str) -> None:
    """`llmt train quickstart --data FILE` learns from plays, an encyclopedia and a Japanese novel."""
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None:
        pytest.skip("TEST_DATA_DIR is not set: it names the folder with the texts")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"TEST_DATA_DIR has no {name}")
    result = inside("train", "quickstart", "--data", str(path), "--max-steps", "3", *tiny, "--eval-batches", "4")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "runs" / "quickstart" / "result.json").read_text())
    assert record["step"] == 3
    assert 0 < record["validation_bits_per_byte"] < 9
    read = inside("eval", "runs/quickstart", "--json")
    assert json.loads(read.out)["bits_per_byte"] == pytest.approx(record["validation_bits_per_byte"], abs=1e-6)
