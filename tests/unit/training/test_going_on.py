"""A resume on a machine, a disk or a model that is not quite what it was, and in other passes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.checkpoints import atomic
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import DivergedError, MismatchError, StorageError, UsageError
from llmt.training.build import Going, build_trainer, prepare
from llmt.training.divergence import FEWEST, PATIENCE, watch_loss
from llmt.training.finish import finish
from llmt.training.replay import replay
from llmt.training.resume import check_same_config
from llmt.training.state import RunState

SAVING = {"training__max_steps": 4, "training__save_steps": 2}


def resumed(lab: Any, config: Any, **going: Any) -> Any:
    """What is decided for going on."""
    return prepare(config, lab.root / "run", base=None, resume=Going(**going), progress=lambda *done: None)


def test_other_passes_of_the_same_step(lab: Any) -> None:
    """What the hint of an error of memory says can be typed: the same sequences in smaller passes, which is said."""
    config = lab.config(**SAVING, training__per_device_train_batch_size=8)
    whole = lab.run(config, "whole")
    lab.run(config, stop_after=2)
    smaller = lab.config(
        **SAVING, training__per_device_train_batch_size=2, training__gradient_accumulation_steps=4,
        training__gradient_checkpointing=True,
    )  # fmt: skip
    check_same_config(lab.root / "run", smaller)
    run = lab.run(smaller, resume=True)
    assert (run.prepared.plan.micro_batch, run.prepared.plan.accumulation) == (2, 4)
    assert {"micro_batch 8 -> 2", "gradient_checkpointing False -> True"} == set(run.trainer.notes)
    # As many held-out sequences are measured, so that the validations can be compared.
    measured = [[r.evaluation.tokens for r in one.reports if r.evaluation is not None] for one in (whole, run)]
    assert set(measured[1]) == set(measured[0])
    assert run.reports[-1].loss == pytest.approx(whole.reports[-1].loss, rel=1e-5)
    again = resumed(lab, smaller)
    assert again.plan.micro_batch == 2
    assert again.plan.estimated_bytes < whole.prepared.plan.estimated_bytes
    assert not again.notes
    other = lab.config(**SAVING, training__per_device_train_batch_size=2)
    with pytest.raises(MismatchError, match=r"gradient_accumulation_steps: 4 -> 1"):
        check_same_config(lab.root / "run", other)


def test_a_trial_that_is_new_to_the_run(lab: Any) -> None:
    """`auto_micro_batch` on a resume looks for what fits, and says that it found something else."""
    config = lab.config(**SAVING, training__gradient_accumulation_steps=2)
    lab.run(config, stop_after=2)
    run = lab.run(config.model_copy(update={
        "training": config.training.model_copy(update={"auto_micro_batch": True})}), resume=True)  # fmt: skip
    assert run.trainer.limits.micro_batch == 8
    assert run.trainer.notes == ("micro_batch 4 -> 8",)


def test_passes_that_were_asked_for_are_not_forgotten(lab: Any) -> None:
    """A process that dies before its first checkpoint leaves the run with what it was told last."""
    lab.run(lab.config(**SAVING, training__per_device_train_batch_size=8), stop_after=2)
    smaller = lab.config(**SAVING, training__per_device_train_batch_size=2, training__gradient_accumulation_steps=4)
    for _ in range(2):
        run = lab.build(smaller, resume=True)
        assert run.trainer.limits.micro_batch == 2
        assert run.trainer.notes == ("micro_batch 8 -> 2",)


def test_a_run_whose_passes_were_tried_is_replayed(lab: Any) -> None:
    """A replay computes as the run did, without a trial of its own."""
    config = lab.config(
        **SAVING, training__gradient_accumulation_steps=2, training__auto_micro_batch=True, training__eval_strategy="no"
    )
    lab.run(config)
    prepared = resumed(lab, config)
    found = replay(prepared, lambda apart: build_trainer(apart, base=None)[0], lambda step, last: None)
    assert (found.first, found.last) == (2, 4)


def test_a_run_without_its_configuration(lab: Any) -> None:
    """Its checkpoints are enough."""
    config = lab.config(**SAVING)
    whole = lab.run(config, "whole")
    lab.run(config, stop_after=2)
    (lab.root / "run" / "config.yaml").unlink()
    assert lab.run(config, resume=True).weights == whole.weights


def test_a_constant_rate_stays_where_it_is(lab: Any) -> None:
    """More steps do not make a run that has warmed up warm up again."""
    settings = {"training__lr_scheduler_type": "constant", "training__warmup_steps": None, "training__save_steps": 4}
    lab.run(lab.config(**settings, training__max_steps=8))
    run = lab.run(lab.config(**settings, training__max_steps=100), resume=True, stop_after=9)
    assert run.reports[-1].learning_rate == pytest.approx(0.01)
    assert not run.trainer.notes


def test_losses_on_other_texts_do_not_count(lab: Any) -> None:
    """After the text changed, the best is one that was measured on the new one."""
    config = lab.config(training__max_steps=6, training__eval_steps=2, training__save_steps=2)
    lab.run(config)
    lab.text.write_text("".join(f"{n} {'zyxw vuts rqpo'[n % 7 :]} {n * n * n}?\n" for n in range(200)))
    prepared = resumed(lab, config.model_copy(update={
        "training": config.training.model_copy(update={"max_steps": 12})}), data_change=True)  # fmt: skip
    loop, keeper = build_trainer(prepared, base=None)
    assert loop.state.best_loss is None
    assert not loop.state.losses
    reports = list(loop.run())
    assert any(report.is_best for report in reports)
    assert loop.state.best_step > 6
    assert finish(loop, keeper, prepared, None).step == loop.state.best_step


def test_a_run_that_stops_validating_publishes_its_end(lab: Any) -> None:
    """What was the best while it still validated is not what it came to; that is said."""
    lab.run(lab.config(training__max_steps=4, training__eval_steps=2))
    run = lab.run(lab.config(training__max_steps=8, training__eval_strategy="no"), resume=True)
    finished = finish(run.trainer, run.keeper, run.prepared, None)
    assert finished.step == 8
    assert "does not validate any more" in finished.warning


@pytest.mark.slow
def test_what_is_tried_is_what_is_compiled(lab: Any) -> None:
    """After trials of more shapes than torch keeps, training still runs compiled code."""
    config = lab.config(
        **SAVING, training__per_device_train_batch_size=48, training__auto_micro_batch=True, training__compile="always"
    )
    run = lab.build(config)
    assert run.trainer.limits.micro_batch == 48
    counters = torch._dynamo.utils.counters
    counters.clear()
    next(iter(run.trainer.run()))
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["recompile_limit"]


def test_a_compiler_that_is_gone(lab: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a run compiled goes on without, where that was left open, and says so."""
    config = lab.config(**SAVING, training__compile="auto")
    run = lab.run(config, stop_after=2)
    path = run.keeper.store.path(2) / "state.json"
    state = json.loads(path.read_text())
    state["fingerprint"]["compile"] = True
    _rewrite(path, json.dumps(state))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    torch.compiler.reset()
    with torch._inductor.utils.fresh_cache():
        prepared = resumed(lab, config)
    assert not prepared.plan.compile
    assert prepared.notes == ("compile True -> False",)


def _rewrite(path: Path, text: str) -> None:
    """Another content of a file of a checkpoint, with a manifest that fits."""
    import hashlib

    path.write_text(text)
    manifest = json.loads((path.parent / "MANIFEST.json").read_text())
    manifest["files"][path.name] = [len(text.encode()), hashlib.sha256(text.encode()).hexdigest()]
    (path.parent / "MANIFEST.json").write_text(json.dumps(manifest))


def test_room_for_what_is_still_to_come(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new run wants room for three checkpoints, a resume for those that it has not, a replay for none."""
    config = lab.config(**SAVING)
    wanted: list[str] = []
    monkeypatch.setattr("llmt.training.build.require_free_space", lambda *a, **_: wanted.append(a[2]))
    lab.run(config)
    resumed(lab, config)
    resumed(lab, config, writes=False)
    assert wanted == ["3 checkpoints", "1 checkpoint"]


def test_a_checkpoint_that_was_being_replaced(lab: Any) -> None:
    """Killed between the two renames: the old one is found, is brought back, and is what a resume goes on from."""
    config = lab.config(training__max_steps=2, training__save_steps=2, training__eval_strategy="no")
    run = lab.run(config)
    checkpoint = run.keeper.store.path(2)
    checkpoint.rename(checkpoint.with_name(".del-checkpoint-2-01234567"))
    store = CheckpointStore(lab.root / "run")
    assert store.holds_any()
    assert not store.steps()
    store.clean()
    assert store.steps() == [2]
    shutil.rmtree(checkpoint)
    assert not store.holds_any()


def test_a_replacement_that_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced is put back, also where the disk refuses to force its renaming."""
    target = tmp_path / "checkpoint-2"
    target.mkdir()
    (target / "file").write_text("old")
    forced = atomic.fsync_directory

    def refuse(path: Path) -> None:
        if path == tmp_path:
            raise OSError(5, "Input/output error")
        forced(path)

    monkeypatch.setattr(atomic, "fsync_directory", refuse)
    with pytest.raises(StorageError), atomic.staged_directory(target, extra={}, replace=True) as staged:
        staged.write_file("file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert (target / "file").read_text() == "old"


def test_another_model_is_refused(lab: Any) -> None:
    """Weights that fit a model which computes otherwise are not taken up."""
    config = lab.config(**SAVING)
    run = lab.run(config, stop_after=2)
    prepared = resumed(lab, config)
    path = run.keeper.store.path(2) / "config.json"
    values = json.loads(path.read_text())
    _rewrite(path, json.dumps({**values, "rope_theta": 500.0, "rope_parameters": {"rope_theta": 500.0}}))
    with pytest.raises(MismatchError, match=r"rope_parameters.* has .*500"):
        build_trainer(prepared, base=None)


def test_a_limit_of_time_that_is_dropped(lab: Any) -> None:
    """The learning rate followed the clock until then: what comes is not what would have been."""
    config = lab.config(**SAVING, training__max_time=1000)
    lab.run(config, stop_after=2)
    assert "max_time 1000.0 -> None" in resumed(lab, lab.config(**SAVING)).notes


def test_patience_needs_something_to_measure(lab: Any) -> None:
    """An option that could never do anything is refused."""
    config = lab.config(training__early_stopping_patience=2, data__validation_split=0.0)
    with pytest.raises(UsageError, match="nothing is held out"):
        lab.build(config)


@pytest.mark.parametrize("known", [0, FEWEST], ids=["first steps", "later"])
@pytest.mark.parametrize("loss", [2.0, 100.0])
def test_a_steep_gradient_is_always_said(known: int, loss: float) -> None:
    """Among the first losses, at a usual one and at a high one."""
    state = RunState(losses=(2.0,) * known)
    assert "gradient norm" in watch_loss(state, loss, 1e9)[1]
    assert not watch_loss(state, loss, 1.0)[1]
    state = RunState(losses=(2.0,) * FEWEST, high=PATIENCE - 1)
    assert "times the usual" in watch_loss(state, 100.0, 1e9)[1]


def test_the_last_measurement_takes_the_passes_of_the_run(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial found to fit fits at the end too; and the record tells the context of the model."""
    sizes: list[int] = []
    from llmt.training import finish as module

    batches = module.evaluation_batches
    monkeypatch.setattr(
        module, "evaluation_batches", lambda held_out, size, *more: sizes.append(size) or batches(held_out, size, *more)
    )
    config = lab.config(
        training__max_steps=2, training__gradient_accumulation_steps=2, training__auto_micro_batch=True,
        model__max_position_embeddings=64,
    )  # fmt: skip
    lab.run(config, publish=True)
    assert sizes == [8]
    assert json.loads((lab.root / "run" / "result.json").read_text())["context_length"] == 64


def test_what_is_passed_over_on_the_way_back_is_said(lab: Any) -> None:
    """A checkpoint that was damaged meanwhile is named by the run that goes back behind it."""
    config = lab.config(
        training__max_steps=8, training__save_steps=2, training__eval_strategy="no", training__retry_on_divergence=True
    )
    run = lab.build(config)
    left = [1]

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        if run.trainer.state.step != 5 or not left[0]:
            return gradient
        left[0] = 0
        path = run.keeper.store.path(4) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        return gradient * float("nan")

    run.trainer.optimizer.weights[1].parameter.register_hook(poison)
    said = [sentence for report in run.trainer.run() for sentence in report.warnings]
    assert any("checkpoint-4 is damaged" in sentence for sentence in said)
    assert any("went back to step 2" in sentence for sentence in said)


def test_a_loss_that_ends_a_run_is_an_error(lab: Any) -> None:
    """A steep gradient by itself ends a run that was told to stop."""
    run = lab.build(lab.config(training__max_steps=3, training__stop_on_divergence=True))
    run.trainer.optimizer.weights[1].parameter.register_hook(lambda gradient: gradient * 1e9)
    with pytest.raises(DivergedError, match="gradient norm"):
        list(run.trainer.run())
