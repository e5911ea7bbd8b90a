"""Supervised tuning on real questions: gsm8k, from rows to a model that other libraries open."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = {
    "LLMT_MODEL__HIDDEN_SIZE": "64", "LLMT_MODEL__INTERMEDIATE_SIZE": "128", "LLMT_MODEL__NUM_HIDDEN_LAYERS": "2",
    "LLMT_MODEL__NUM_ATTENTION_HEADS": "4", "LLMT_TOKENIZER__VOCAB_SIZE": "1024", "LLMT_DATA__BLOCK_SIZE": "256",
    "LLMT_TRAINING__COMPILE": "never", "LLMT_TRAINING__PRECISION": "fp32", "LLMT_LOGGING__SAMPLE_TOKENS": "8",
    "LLMT_TRAINING__PER_DEVICE_TRAIN_BATCH_SIZE": "8",
}  # fmt: skip


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six hundred rows of gsm8k."""
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None or not (Path(folder) / "gsm8k-train.jsonl").is_file():
        pytest.skip("TEST_DATA_DIR holds no gsm8k-train.jsonl")
    lines = (Path(folder) / "gsm8k-train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(lines[:600]), encoding="utf-8")
    return tmp_path / "gsm8k.jsonl"


@pytest.mark.parametrize(("kind", "fall"), [("adapter", 0.25), ("whole", 1.0)])
def test_questions_are_learnt(inside: Any, tmp_path: Path, questions: Path, kind: str, fall: float) -> None:
    """The loss of answers that are held out falls, only answers count, and what comes of it opens elsewhere."""

    def llmt(*words: str) -> Any:
        result = inside(*words, cwd=tmp_path, env=SMALL)
        assert result.code == 0, result.err
        return result

    llmt("train", "--name", "base", "--max-steps", "40")
    data = ("--base", "runs/base", "--data", questions.name, "--name", "maths", "--max-steps", "60")
    if kind == "adapter":
        made = llmt("train", "--lora", *data, "--learning-rate", "1e-2", "--json")
        name = "runs/maths-lora"
    else:
        made = llmt("train", "sft", *data, "--learning-rate", "3e-3", "--json")
        name = "runs/maths"
    record = json.loads((tmp_path / name / "result.json").read_text())
    assert 0 < record["data_trained"] < record["data_tokens"]
    after = json.loads(made.out)["validation"]
    measured = json.loads(llmt("eval", name, "--json").out)
    assert measured["loss"] == pytest.approx(after["loss"], abs=1e-5)
    metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] - after["loss"] > fall
    assert "Question: " in (AutoTokenizer.from_pretrained(tmp_path / name).chat_template or "")
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / name)("Question: How many?\nAnswer:").input_ids])
    with torch.no_grad():
        if kind == "whole":
            assert AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()(ids).logits.isfinite().all()
            return
        llmt("convert", "merge-lora", name)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merged").eval()(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "base")
        named = PeftModel.from_pretrained(base, tmp_path / name).eval()(ids).logits
        alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / name).eval()(ids).logits
    assert torch.allclose(named, merged, atol=1e-5)
    assert torch.allclose(alone, merged, atol=1e-5)
