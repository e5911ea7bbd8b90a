"""Supervised tuning: prompts and answers, however they are put into batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmt.models.lora import LoraModel
from llmt.training.step import Stepper

WORDS = ["sea", "ship", "captain", "letter", "king", "year", "nobody", "came", "back", "wrote"]


@pytest.fixture
def base(lab: Any) -> Path:
    """A finished run."""
    lab.run(lab.config(training__max_steps=2), "base", publish=True)
    return lab.root / "base"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two dozen questions with answers of several lengths."""
    path = tmp_path / "rows.jsonl"
    pairs = [{"prompt": f"{n}? ", "completion": " ".join(WORDS[: 1 + n % 7])} for n in range(24)]
    path.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    return path


def _gradients(lab: Any, rows: Path, base: Path, packing: str, passes: int, **more: Any) -> dict[str, Tensor]:
    """The gradients of the mean loss over all rows, taken in so many passes."""
    settings = {
        "data__sources": [str(rows)], "data__packing": packing, "data__validation_split": 0.0, "data__block_size": 64,
        "training__max_steps": 1, "training__eval_batches": None, **more,
    }  # fmt: skip
    probe = lab.build(lab.config(**settings), f"probe-{packing}", base=base)
    count = probe.prepared.corpus.data.samples
    size = -(-count // passes)
    made = lab.config(**settings, training__per_device_train_batch_size=size)
    run = lab.build(made, f"run-{packing}-{passes}", base=base)
    # A last batch that goes on into the next pass over the rows would count some of them twice.
    loader = run.trainer.loader
    window = [loader.batch_at(start) for start in range(0, count, size)]
    extra = len(window) * size - count
    if extra:
        last = window[-1]
        kept = size - extra
        labels = last.labels[:kept]
        positions = None if last.position_ids is None else last.position_ids[:kept]
        window[-1] = type(last)(last.input_ids[:kept], labels, int((labels != -100).sum()), positions)
    optimizer, model = run.trainer.optimizer, run.trainer.model
    if isinstance(model, LoraModel):
        with torch.no_grad():
            for weight in optimizer.weights:
                drawn = torch.randn(weight.master.shape, generator=torch.Generator().manual_seed(len(weight.name)))
                weight.master.copy_(drawn * 0.1)
    tokens = sum(batch.tokens for batch in window)
    Stepper(model, optimizer, 0, run.trainer.runtime).gradients(window, 0, tokens, None)
    return {weight.name: weight.master.grad.clone() for weight in optimizer.weights}


@pytest.mark.parametrize("more", [{}, {"lora__enabled": True, "lora__r": 4}], ids=["whole", "adapter"])
def test_packed_unpacked_and_accumulated_are_one(lab: Any, rows: Path, base: Path, more: dict[str, Any]) -> None:
    """The gradient of all rows is the same to 1e-6 in packed sequences, one row each, and summed over passes."""
    expected = _gradients(lab, rows, base, "none", 1, **more)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for packing, passes in (("none", 5), ("best_fit", 1), ("best_fit", 3)):
        found = _gradients(lab, rows, base, packing, passes, **more)
        assert found.keys() == expected.keys()
        worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        assert worst < 1e-6 * max(largest, 1.0), (packing, passes, worst)
