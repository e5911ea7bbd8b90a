"""docs/fine-tuning.md says what is so: each of its lines runs, in order, in one folder."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
LINES = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
SMALL = {
    "LLMT_MODEL__HIDDEN_SIZE": "32", "LLMT_MODEL__INTERMEDIATE_SIZE": "64", "LLMT_MODEL__NUM_HIDDEN_LAYERS": "2",
    "LLMT_MODEL__NUM_ATTENTION_HEADS": "2", "LLMT_TOKENIZER__ALGO": "byte", "LLMT_DATA__BLOCK_SIZE": "128",
    "LLMT_TRAINING__MAX_STEPS": "3", "LLMT_TRAINING__WARMUP_STEPS": "1", "LLMT_TRAINING__COMPILE": "never",
    "LLMT_TRAINING__EVAL_BATCHES": "2", "LLMT_TRAINING__PRECISION": "fp32", "LLMT_LOGGING__SAMPLE_TOKENS": "4",
}  # fmt: skip


def _fill(folder: Path) -> None:
    """The rows that a reader would save: those of the page, again and again, and pairs made of them."""
    block = re.search(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    shown = [json.loads(line) for line in block[1].splitlines()]
    rows = [{key: f"{value} ({number})" for key, value in shown[number % 2].items()} for number in range(120)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pairs = [{"prompt": row["question"], "chosen": f" {row['answer']}", "rejected": " No."} for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")


def test_the_page_is_walked_through(inside: Any, tmp_path: Path) -> None:
    """From raw rows to chat: every line ends well, and what the page says of the results holds."""
    _fill(tmp_path)
    said = {}
    for line in LINES:
        words = shlex.split(line)
        assert words[0] == "llmt", line
        turns = "/adapters\nWho may read the list?\n/exit\n" if "--chat" in words else None
        more = ["--max-new-tokens", "4"] if words[1] == "generate" else []
        result = inside(*words[1:], *more, cwd=tmp_path, env=SMALL, **({"stdin": turns} if turns else {}))
        assert result.code == 0, (line, result.err)
        said[line] = result
    adapter = next(result for line, result in said.items() if "--lora" in line)
    order = [adapter.err.index(word) for word in ("plan", "trained\n", "before\n", "changed, and no other", "after\n")]
    assert order == sorted(order)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "runs" / "harbour-lora")("Who may read?").input_ids])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "harbour-lora-merged").eval()
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "base").eval()
        before = base(ids).logits
        together = PeftModel.from_pretrained(base, tmp_path / "runs" / "harbour-lora").eval()(ids).logits
        assert torch.allclose(merged(ids).logits, together, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, before, atol=1e-5)
    halves = AutoModelForCausalLM.from_pretrained(tmp_path / "harbour-bf16")
    assert halves.dtype == torch.bfloat16
    assert "of what the adapter moved" in said[next(line for line in LINES if "bfloat16" in line)].out


@pytest.mark.parametrize("row", re.findall(r"^\| `([a-z0-9_`, ]+)` \|", PAGE, re.MULTILINE))
def test_the_table_names_methods_that_there_are(row: str) -> None:
    """Each method of the table can be asked for, and none is left out."""
    from llmt.config.lora import HONOURED

    assert {name.strip("` ") for name in row.split(",")} <= HONOURED.keys()
    assert all(f"`{name}`" in PAGE for name in HONOURED)
