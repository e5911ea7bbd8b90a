"""Continuing equals never having stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmt.config.load import dump_config
from llmt.errors import MismatchError, ModelFileError
from llmt.training.resume import check_same_config

STEPS = 6
DROPOUT = {"attention_dropout": 0.1, "hidden_dropout": 0.1}


def _config(lab: Any, **settings: Any) -> Any:
    config = lab.config(training__max_steps=STEPS, **settings)
    return config.model_copy(update={"model": config.model.model_copy(update=DROPOUT)})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("held_out", [0.0, 0.1])
def test_resume_is_exact(lab: Any, precision: str, optimizer: str, held_out: float) -> None:
    """With dropout and accumulation, stopped twice and resumed, every weight and moment is bit for bit the same."""
    settings = {
        "training__precision": precision, "training__optimizer": optimizer, "data__validation_split": held_out,
        "training__gradient_accumulation_steps": 2, "training__eval_steps": 2,
    }  # fmt: skip
    config = _config(lab, **settings)
    whole = lab.run(config, "whole")
    parts = lab.run(config, "parts", stop_after=1)
    assert parts.weights != whole.weights
    losses = [report.loss for report in parts.reports]
    for stop in (4, None):
        parts = lab.run(config, "parts", resume=True, stop_after=stop)
        assert parts.trainer.notes == ()
        losses += [report.loss for report in parts.reports]
    assert losses == [report.loss for report in whole.reports]
    assert parts.weights == whole.weights
    assert parts.trainer.state.tokens == whole.trainer.state.tokens
    assert parts.trainer.state.best_loss == whole.trainer.state.best_loss
    assert parts.trainer.state.best_step == whole.trainer.state.best_step


def test_watching_and_saving_change_nothing(lab: Any) -> None:
    """Weights do not depend on how often the run is validated, saved, or how batches are read ahead."""
    settings = [
        {}, {"training__eval_steps": 1}, {"training__save_steps": 1}, {"training__eval_batches": 1},
        {"data__num_workers": 2},
    ]  # fmt: skip
    found = {lab.run(_config(lab, **change), f"run{n}").weights for n, change in enumerate(settings)}
    assert len(found) == 1


def test_recomputing_changes_nothing(lab: Any) -> None:
    """Gradient checkpointing with dropout gives the same weights."""
    config = _config(lab)
    recomputing = _config(lab, training__gradient_checkpointing=True)
    assert lab.run(config, "a").weights == lab.run(recomputing, "b").weights


def test_seed_changes_everything(lab: Any) -> None:
    """The same seed gives the same run again, another seed another one."""
    config = _config(lab)
    first = lab.run(config, "a").weights
    assert lab.run(config, "b").weights == first
    assert lab.run(config.model_copy(update={"seed": 1}), "c").weights != first


def test_accumulated_run_is_the_whole_one(lab: Any) -> None:
    """Four passes of two sequences are one of eight: equal samples, losses equal to fp32 rounding."""
    wide = lab.config(training__max_steps=4, training__per_device_train_batch_size=8)
    narrow = lab.config(
        training__max_steps=4, training__per_device_train_batch_size=2, training__gradient_accumulation_steps=4
    )
    a, b = lab.run(wide, "a"), lab.run(narrow, "b")
    assert [r.tokens for r in a.reports] == [r.tokens for r in b.reports]
    assert [r.loss for r in a.reports] == pytest.approx([r.loss for r in b.reports], rel=1e-4)


def test_resume_near_the_end_of_a_long_schedule(lab: Any) -> None:
    """Rates too small to move an fp32 weight are no sign of a run that learns nothing."""
    config = lab.config(training__max_steps=40, training__learning_rate=1e-6, training__muon_learning_rate=1e-6)
    lab.run(config, stop_after=37)
    assert [report.step for report in lab.run(config, resume=True).reports] == [38, 39, 40]


def test_other_text_is_refused(lab: Any) -> None:
    """A resume after the text has changed is refused with exit code 5 and changes no file."""
    config = lab.config(training__max_steps=4)
    lab.run(config, stop_after=2)
    files = {path: path.read_bytes() for path in (lab.root / "run").rglob("*") if path.is_file()}
    lab.text.write_text(lab.text.read_text().replace("fox", "dog"), encoding="utf-8")
    with pytest.raises(MismatchError, match="training text") as caught:
        lab.run(config, resume=True)
    assert caught.value.exit_code == 5
    assert {path: path.read_bytes() for path in (lab.root / "run").rglob("*") if path.is_file()} == files


def test_changed_settings_are_refused_by_name(lab: Any) -> None:
    """Every setting that a step depends on is named with both values; limits and places may change."""
    config = lab.config(training__max_steps=4)
    lab.run(config, stop_after=1)
    check_same_config(lab.root / "run", config)
    longer = lab.config(training__max_steps=9, training__save_steps=1, threads=2)
    check_same_config(lab.root / "run", longer)
    other = lab.config(training__max_steps=4, training__learning_rate=0.5, data__block_size=8, seed=3)
    with pytest.raises(MismatchError) as caught:
        check_same_config(lab.root / "run", other)
    assert caught.value.exit_code == 5
    for words in ("training.learning_rate: 0.01 -> 0.5", "data.block_size: 16 -> 8", "seed: 42 -> 3"):
        assert words in caught.value.message


def test_config_in_the_run_is_the_one_asked(lab: Any) -> None:
    """config.yaml in the run is the configuration as it was asked, readable as an input."""
    config = lab.config(training__max_steps=2)
    lab.run(config)
    assert (lab.root / "run" / "config.yaml").read_text() == dump_config(config)


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoint_is_passed_over(lab: Any, file: str) -> None:
    """One flipped bit in the newest checkpoint: it is named, set aside, and the run goes on from the one before."""
    config = lab.config(training__max_steps=5, training__save_steps=1, data__validation_split=0)
    whole = lab.run(config, "whole")
    lab.run(config, stop_after=4)
    _damage(lab.root / "run" / "checkpoint-4" / file)
    run = lab.run(config, resume=True)
    (sentence,) = run.prepared.damaged
    assert "checkpoint-4" in sentence
    assert file in sentence
    assert [report.step for report in run.reports] == [4, 5]
    assert run.weights == whole.weights


def test_nothing_whole_to_resume(lab: Any) -> None:
    """Where every checkpoint is damaged the resume is refused with exit code 4 and says so."""
    config = lab.config(training__max_steps=5)
    lab.run(config, stop_after=1)
    _damage(lab.root / "run" / "checkpoint-1" / "model.safetensors")
    with pytest.raises(ModelFileError, match="no whole checkpoint") as caught:
        lab.run(config, resume=True)
    assert caught.value.exit_code == 4


def test_checkpoint_of_another_optimizer(lab: Any) -> None:
    """A checkpoint whose optimizer tensors do not belong to this optimizer is refused, not read as zeros."""
    lab.run(lab.config(training__max_steps=4, training__optimizer="muon"), stop_after=1)
    with pytest.raises(MismatchError):
        lab.run(lab.config(training__max_steps=4, training__optimizer="adamw"), resume=True)


def test_a_resume_keeps_what_was_decided(lab: Any) -> None:
    """What the run decided by itself stays decided on the same kind of device."""
    config = lab.config(training__max_steps=4, training__precision="bf16")
    lab.run(config, stop_after=1)
    run = lab.run(lab.config(training__max_steps=4, training__precision="auto"), resume=True)
    assert run.prepared.plan.precision == "bf16"
    assert run.trainer.notes == ()


def test_state_file_is_checked(lab: Any) -> None:
    """state.json holds the position, and the fingerprint of what the run depends on."""
    lab.run(lab.config(training__max_steps=3))
    state = json.loads((lab.root / "run" / "checkpoint-3" / "state.json").read_text())
    assert (state["step"], state["format"]) == (3, 1)
    assert state["seconds"] > 0
    assert {"data", "tokenizer", "torch", "device", "precision", "threads"} <= set(state["fingerprint"])
