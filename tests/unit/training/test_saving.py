"""Checkpoints beside training, on a disk that refuses, and after somebody asked for an earlier one."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.checkpoints.manifest import verify_manifest
from llmt.checkpoints.survey import set_aside_names, survey
from llmt.checkpoints.weights import load_weights
from llmt.errors import MismatchError, ModelFileError, StorageError, UsageError
from llmt.system.plan import RunPlan
from llmt.system.products import can_use_onednn
from llmt.training.build import Going, build_trainer, prepare
from llmt.training.directory import parse_resume
from llmt.training.finish import finish
from llmt.training.replay import replay
from llmt.training.resume import check_same_run, pin_plan, share_step


@contextmanager
def small_files() -> Iterator[None]:
    """The system refuses files of more than 2,000 bytes meanwhile."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")


def _files(directory: Path) -> dict[str, bytes]:
    """The content of a checkpoint, but for what depends on the clock."""
    left_out = ("state.json", "MANIFEST.json")
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name not in left_out}


@pytest.mark.parametrize("settings", [{}, {"training__ema_decay": 0.5}, {"training__precision": "bf16"}], ids=str)
def test_a_checkpoint_written_meanwhile_is_that_of_its_step(lab: Any, settings: dict[str, Any]) -> None:
    """Written while training goes on, every checkpoint has the bytes of one that training waited for."""
    common = {"training__max_steps": 9, "training__save_steps": 1, "training__save_total_limit": 20, **settings}
    waits = lab.run(lab.config(**common), "waits")
    beside = lab.run(lab.config(**common, training__async_save=True), "beside")
    assert waits.keeper.store.steps() == beside.keeper.store.steps() == list(range(1, 10))
    for step in range(1, 10):
        verify_manifest(beside.keeper.store.path(step))
        assert _files(waits.keeper.store.path(step)) == _files(beside.keeper.store.path(step)), step
    assert beside.weights == waits.weights


def test_an_adapter_is_written_meanwhile_too(lab: Any) -> None:
    """The snapshot of an adapter is that of its step."""
    lab.run(lab.config(training__max_steps=2), "base", publish=True)
    common = {
        "training__max_steps": 5,
        "training__save_steps": 1,
        "lora__enabled": True,
        "training__save_total_limit": 9,
    }
    waits = lab.run(lab.config(**common), "waits", base=lab.root / "base")
    beside = lab.run(lab.config(**common, training__async_save=True), "beside", base=lab.root / "base")
    for step in (1, 3, 5):
        assert _files(waits.keeper.store.path(step)) == _files(beside.keeper.store.path(step))


def _wait(run: Any) -> None:
    """Until the thread that writes, if there is one, has written what was begun."""
    if run.keeper._writer is not None:
        run.keeper._writer.submit(int).result()


@needs_limits
@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_is_tried_again(lab: Any, beside: bool) -> None:
    """A checkpoint that the disk refuses is said, the earlier one stays, and the next one is written."""
    config = lab.config(
        training__max_steps=8, training__save_steps=2, training__eval_strategy="no", training__save_total_limit=9,
        training__async_save=beside,
    )  # fmt: skip
    whole = lab.run(config, "whole")
    run = lab.build(config)
    warnings: list[str] = []
    steps = run.trainer.run()
    for report in steps:
        warnings += report.warnings
        if report.step == 3:
            _wait(run)
            before = _files(run.keeper.store.path(2))
            limit = small_files()
            limit.__enter__()
        if report.step == 5:
            _wait(run)
            limit.__exit__(None, None, None)
    assert len(warnings) == 1
    assert warnings[0].startswith("step 4: ")
    assert run.keeper.store.steps() == [2, 6, 8]
    assert _files(run.keeper.store.path(2)) == before
    assert run.weights == whole.weights
    assert not list((lab.root / "run").glob(".tmp-*"))


@needs_limits
def test_three_refusals_end_the_run(lab: Any) -> None:
    """The third checkpoint in a row that the disk refuses ends the run with exit code 6."""
    config = lab.config(training__max_steps=30, training__save_steps=2, training__eval_strategy="no")
    run = lab.build(config)
    with pytest.raises(StorageError) as caught, small_files():
        list(run.trainer.run())
    assert caught.value.exit_code == 6
    assert run.trainer.state.step == 6
    assert run.keeper.store.steps() == []


@needs_limits
def test_a_best_that_was_not_kept_is_not_the_best(lab: Any) -> None:
    """A validation whose checkpoint the disk refused does not become the one that is published."""
    config = lab.config(training__max_steps=6, training__eval_steps=1, training__save_total_limit=1)
    run = lab.build(config)
    steps = run.trainer.run()
    for _ in range(3):
        next(steps)
    kept = run.trainer.state.best_step
    assert kept == 3
    with small_files():
        refused = next(steps)
    assert refused.is_best
    assert refused.warnings
    assert run.trainer.state.best_step == kept
    assert kept in run.keeper.store.steps()
    list(steps)
    assert run.trainer.state.best_step in run.keeper.store.steps()


@needs_limits
def test_the_last_checkpoint_is_required(lab: Any) -> None:
    """A run whose last checkpoint is refused fails, and says so."""
    run = lab.build(lab.config(training__max_steps=2, training__eval_strategy="no", training__save_steps=50))
    with small_files(), pytest.raises(StorageError):
        list(run.trainer.run())


def test_a_resume_from_a_named_checkpoint(lab: Any) -> None:
    """The checkpoints after it are set aside, and the run comes to the same end."""
    config = lab.config(training__max_steps=8, training__save_steps=2, training__save_total_limit=9)
    whole = lab.run(config)
    prepared = prepare(config, lab.root / "run", base=None, resume=Going(4), progress=lambda *done: None)
    loop, keeper = build_trainer(prepared, base=None)
    assert loop.state.step == 4
    assert keeper.store.steps()[-1] == 4
    aside = set_aside_names(lab.root / "run")
    assert len(aside) >= 2
    assert all(name.startswith(".later-checkpoint-") for name in aside)
    list(loop.run())
    for name, tensor in whole.trainer.optimizer.masters().items():
        assert torch.equal(tensor, loop.optimizer.masters()[name])


def test_a_named_checkpoint_that_is_damaged_is_refused(lab: Any) -> None:
    """Whoever names a checkpoint gets that one or none."""
    config = lab.config(
        training__max_steps=4, training__save_steps=2, training__save_total_limit=9, training__eval_strategy="no"
    )
    run = lab.run(config)
    path = run.keeper.store.path(2) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for step, reason in ((2, "sha256 differs"), (3, "is not there")):
        with pytest.raises(ModelFileError, match=reason):
            prepare(config, lab.root / "run", base=None, resume=Going(step), progress=lambda *done: None)
    assert run.keeper.store.steps() == [2, 4]


def test_what_resume_may_name(lab: Any) -> None:
    """A run, a checkpoint of it, or a word; anything else is refused."""
    lab.run(lab.config(training__max_steps=2))
    run = lab.root / "run"
    assert parse_resume("newest").required
    assert not parse_resume("auto").required
    assert parse_resume(str(run)).directory == run
    named = parse_resume(str(run / "checkpoint-2"))
    assert (named.directory, named.step) == (run, 2)
    for name in ("nowhere", str(lab.root), str(lab.root / "checkpoint-2")):
        with pytest.raises(ModelFileError):
            parse_resume(name)


@pytest.mark.parametrize("settings", [
    {}, {"training__ema_decay": 0.5}, {"training__precision": "bf16", "training__gradient_accumulation_steps": 2},
    {"training__optimizer": "adamw", "model__hidden_dropout": 0.2},
], ids=str)  # fmt: skip
def test_the_last_interval_is_replayed(lab: Any, settings: dict[str, Any]) -> None:
    """Trained again it gives every bit, and nothing in the run's directory changes; a wrong bit is found."""
    config = lab.config(training__max_steps=7, training__save_steps=3, training__eval_steps=3, **settings)
    run = lab.run(config)
    before = {path: path.read_bytes() for path in (lab.root / "run").rglob("*") if path.is_file()}
    steps = run.keeper.store.steps()
    found = _replay(lab, config)
    assert (found.first, found.last) == tuple(steps[-2:])
    assert found.tensors > 20
    assert {path: path.read_bytes() for path in (lab.root / "run").rglob("*") if path.is_file()} == before
    _change_a_bit(run.keeper.store.path(steps[-2]))
    with pytest.raises(MismatchError, match="is another after steps") as caught:
        _replay(lab, config)
    assert caught.value.exit_code == 5


def _replay(lab: Any, config: Any) -> Any:
    return replay(_prepared(lab, config), lambda apart: build_trainer(apart, base=None)[0], lambda step, last: None)


def _prepared(lab: Any, config: Any) -> Any:
    return prepare(config, lab.root / "run", base=None, resume=True, progress=lambda *done: None)


def _change_a_bit(checkpoint: Path) -> None:
    """Another first moment, under a manifest that fits it: what only training again can find."""
    import hashlib

    path = checkpoint / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 64
    path.write_bytes(data)
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    manifest["files"][path.name] = [len(data), hashlib.sha256(data).hexdigest()]
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def test_one_checkpoint_cannot_be_replayed(lab: Any) -> None:
    """Two are needed."""
    config = lab.config(training__max_steps=2, training__save_steps=50, training__eval_strategy="no")
    lab.run(config)
    with pytest.raises(UsageError, match="two are needed"):
        _replay(lab, config)


def test_a_survey_of_the_checkpoints(lab: Any) -> None:
    """Steps, tokens, the best and what is damaged, found without changing anything."""
    config = lab.config(
        training__max_steps=6, training__save_steps=2, training__save_total_limit=9, training__eval_steps=3
    )
    run = lab.run(config)
    found = list(survey(lab.root / "run", contents=True))
    assert [one.step for one in found] == run.keeper.store.steps()
    assert [one.step for one in found if one.is_best] == [run.trainer.state.best_step]
    assert found[-1].tokens == run.trainer.state.tokens
    assert all(not one.problems and one.files > 5 and one.size > 1000 for one in found)
    path = found[1].path / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not list(survey(lab.root / "run", contents=False))[1].problems
    damaged = list(survey(lab.root / "run", contents=True))
    assert [one.step for one in damaged if one.problems] == [found[1].step]
    assert next(survey(found[1].path, contents=True)).problems == damaged[1].problems
    assert path.exists()
    with pytest.raises(ModelFileError, match="has no checkpoints"):
        list(survey(lab.root / "cache", contents=True))


def test_the_text_may_change_where_that_is_allowed(lab: Any) -> None:
    """Otherwise it is refused; what was allowed stands in every later checkpoint."""
    config = lab.config(training__max_steps=6, training__save_steps=1)
    lab.run(config, stop_after=3)
    lab.text.write_text(lab.text.read_text() + "One more line of text.\n" * 9, encoding="utf-8")
    with pytest.raises(MismatchError, match="training text changed"):
        _prepared(lab, config)
    prepared = prepare(config, lab.root / "run", base=None, resume=Going(data_change=True), progress=lambda *done: None)
    assert any("training text changed" in note for note in prepared.notes)
    loop, keeper = build_trainer(prepared, base=None)
    list(loop.run())
    state = json.loads((keeper.store.path(6) / "state.json").read_text())
    assert state["fingerprint"]["data_changes"] == [3]
    assert _prepared(lab, config).notes == ()
    assert load_weights(keeper.store.path(6))


@needs_limits
def test_bests_that_were_never_written_are_forgotten(lab: Any) -> None:
    """Two bests in a row are refused while training goes on: the best is one that is there, and is published."""
    config = lab.config(
        training__max_steps=8, training__eval_steps=2, training__save_steps=50, training__async_save=True,
        training__save_total_limit=5,
    )  # fmt: skip
    run = lab.build(config)
    for report in run.trainer.run():
        if report.step == 3:
            _wait(run)
            limit = small_files()
            limit.__enter__()
        if report.step == 7:
            _wait(run)
            limit.__exit__(None, None, None)
    assert run.trainer.state.best_step in run.keeper.store.steps()
    assert 4 not in run.keeper.store.steps()
    assert finish(run.trainer, run.keeper, run.prepared, None).warning == ""


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_best_that_is_lost_does_not_stop_the_end(lab: Any, harm: str) -> None:
    """The last checkpoint is published instead, and that is said; so it is again by every later resume."""
    kept = {"training__max_steps": 6, "training__save_steps": 2, "training__save_total_limit": 9}
    run = lab.run(lab.config(training__eval_steps=3, **kept), stop_after=5)
    best = run.keeper.store.path(run.trainer.state.best_step)
    assert best.name == "checkpoint-3"
    if harm == "gone":
        shutil.rmtree(best)
    else:
        data = bytearray((best / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (best / "model.safetensors").write_bytes(data)
    for _ in range(2):
        resumed = lab.build(lab.config(training__eval_steps=3, **kept), resume=True)
        resumed.trainer.state = resumed.trainer.state.advance(best_loss=0.0)  # which nothing gets below
        list(resumed.trainer.run())
        finished = finish(resumed.trainer, resumed.keeper, resumed.prepared, None)
        assert finished.step == 6
        assert "checkpoint-3" in finished.warning


def test_a_damaged_line_of_metrics_is_dropped(lab: Any) -> None:
    """What a power failure leaves in the log of a run is no reason not to go on."""
    config = lab.config(training__max_steps=4, training__save_steps=2)
    lab.run(config, stop_after=2)
    path = lab.root / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'\0\0\0\n{"loss": 1}\n[]\n{"step"\n\xff\n')
    lab.run(config, resume=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_the_checkpoint_that_a_run_goes_on_from_stays(lab: Any) -> None:
    """Whatever else is removed."""
    config = lab.config(
        training__max_steps=9, training__save_steps=2, training__eval_strategy="no", training__save_total_limit=9
    )
    lab.run(config)
    few = lab.config(
        training__max_steps=9, training__save_steps=1, training__eval_strategy="no", training__save_total_limit=1
    )
    prepared = prepare(few, lab.root / "run", base=None, resume=Going(4), progress=lambda *done: None)
    loop, keeper = build_trainer(prepared, base=None)
    list(loop.run())
    assert keeper.store.steps() == [4, 9]


def test_a_plan_renames_nothing(lab: Any) -> None:
    """Whoever only looks leaves a damaged checkpoint where it is, and is told of it."""
    config = lab.config(training__max_steps=4, training__save_steps=2, training__eval_strategy="no")
    run = lab.run(config)
    path = run.keeper.store.path(4) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = sorted(p.name for p in (lab.root / "run").iterdir())
    prepared = prepare(config, lab.root / "run", base=None, resume=Going(rename=False), progress=lambda *done: None)
    assert prepared.checkpoint.step == 2
    assert "checkpoint-4 is damaged" in prepared.damaged[0]
    assert sorted(p.name for p in (lab.root / "run").iterdir()) == before


def test_a_run_by_the_clock_is_not_replayed(lab: Any) -> None:
    """Its learning rate would be another."""
    config = lab.config(training__max_steps=4, training__save_steps=2, training__max_time=1e6)
    lab.run(config)
    with pytest.raises(UsageError, match="follows the clock"):
        _replay(lab, config)


def test_a_longer_schedule_is_said(lab: Any) -> None:
    """Another length gives another curve, which is not what would have been; of a constant rate it is the same."""
    for shape, said in (("cosine", True), ("constant", False)):
        config = lab.config(training__max_steps=4, training__lr_scheduler_type=shape)
        lab.run(config, shape)
        longer = lab.config(training__max_steps=6, training__lr_scheduler_type=shape)
        prepared = prepare(longer, lab.root / shape, base=None, resume=True, progress=lambda *done: None)
        assert any("steps of the schedule 4 -> 6" in note for note in prepared.notes) is said


@pytest.mark.parametrize(("processes", "expected"), [(1, (4, 2)), (2, (4, 1)), (4, (2, 1)), (8, (1, 1))])
def test_a_step_is_shared_by_other_processes(processes: int, expected: tuple[int, int]) -> None:
    """What a step reads stays the same; what cannot be divided is refused."""
    plan = _plan(4, 2)
    shared = share_step(plan, 8, processes)
    assert (shared.micro_batch, shared.accumulation) == expected
    with pytest.raises(MismatchError, match="3 processes cannot share"):
        share_step(plan, 8, 3)


def _plan(micro_batch: int, accumulation: int) -> RunPlan:
    return RunPlan(
        device="cpu", precision="fp32", fp32_products="torch", threads=1, micro_batch=micro_batch,
        accumulation=accumulation, num_workers=0, pin_memory=False, reuse_memory=False, compile=False,
        distributed_backend="gloo", total_steps=1, estimated_bytes=1, lines=(),
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_line_that_the_disk_refuses_is_written_later(lab: Any) -> None:
    """A full disk at a line of metrics stops nothing and is said once; no line is lost."""
    run = lab.build(lab.config(training__max_steps=6))
    metrics = lab.root / "run" / "metrics.jsonl"
    metrics.symlink_to("/dev/full")
    said = []
    for report in run.trainer.run():
        said.append(run.keeper.log(report))
        if report.step == 4:
            metrics.unlink()
    assert [bool(sentence) for sentence in said] == [True, False, False, False, False, False]
    assert "the line is kept and written later" in said[0]
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_an_old_checkpoint_that_stays_is_no_failed_save(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where old ones cannot be removed, the new ones stand, the best is still known, and it is said."""
    run = lab.build(lab.config(training__max_steps=8, training__eval_steps=1, training__save_total_limit=1))

    def refused(*arguments: Any, **names: Any) -> None:
        raise StorageError("checkpoint-1: in use", "close it")

    monkeypatch.setattr(run.keeper.store, "retain", refused)
    reports = list(run.trainer.run())
    assert [report.warnings for report in reports if report.checkpoint] == [
        (f"step {report.step}: checkpoint-1: in use",) for report in reports if report.checkpoint
    ]
    best = max(report.step for report in reports if report.is_best)
    assert run.trainer.state.best_step == best
    assert finish(run.trainer, run.keeper, run.prepared, None).step == best


def test_nothing_is_written_after_a_run_was_left(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves the loop while a checkpoint is written waits for it: the lock is free afterwards."""
    config = lab.config(
        training__max_steps=9, training__save_steps=2, training__async_save=True, training__eval_strategy="no"
    )
    run = lab.build(config)
    write = run.keeper._write

    def slowly(contents: Any) -> Any:
        time.sleep(0.3)
        return write(contents)

    monkeypatch.setattr(run.keeper, "_write", slowly)
    reports = run.trainer.run()
    for report in reports:
        if report.step == 2:
            break
    assert run.keeper.store.steps() == []
    reports.close()
    assert run.keeper.store.steps() == [2]
    verify_manifest(run.keeper.store.path(2))


def test_the_checkpoint_knows_what_was_decided(lab: Any) -> None:
    """A resume computes as the checkpoint did, whatever `plan.json` says, or where it is gone."""
    config = lab.config(training__max_steps=4, threads=1)
    lab.run(config, stop_after=2)
    (lab.root / "run" / "plan.json").write_text("{}")
    opened = config.model_copy(update={"threads": None})
    resumed = lab.run(opened, resume=True)
    assert (resumed.prepared.plan.threads, resumed.trainer.notes) == (1, ())
    assert resumed.weights == lab.run(config, "whole").weights


@pytest.mark.parametrize(("before", "today", "value"), [
    ({}, "onednn", "torch"),  # a checkpoint from before there was a choice
    ({"fp32_products": "onednn"}, "torch", "onednn"), ({"fp32_products": "torch"}, "onednn", "torch"),
])  # fmt: skip
def test_a_resume_keeps_who_multiplies(
    lab: Any, before: dict[str, str], today: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library of a run is that of its checkpoint, and on a processor that is not to use it, torch's choice."""
    run = lab.run(lab.config(training__max_steps=4), stop_after=2)
    old = {key: value for key, value in run.prepared.fingerprint.items() if key != "fp32_products"}
    state = run.trainer.state.advance(fingerprint=old | before)
    plan = pin_plan(state, replace(run.prepared.plan, fp32_products=today), run.prepared.config, 1)
    here = value if can_use_onednn() else "torch"
    assert plan.fp32_products == here
    assert {line.value for line in plan.lines if line.name == "fp32_products"} == {here}
    monkeypatch.setattr("llmt.system.products.is_amd", lambda: False)
    elsewhere = pin_plan(state, replace(run.prepared.plan, fp32_products="torch"), run.prepared.config, 1)
    assert elsewhere.fp32_products == "torch"
    assert {line.value for line in elsewhere.lines if line.name == "fp32_products"} == {"torch"}


@pytest.mark.parametrize(("key", "was"), [("llmt", "0.0.1"), ("processor", "another one"), ("device", "cuda")])
def test_another_version_or_machine_is_said(lab: Any, key: str, was: str) -> None:
    """What may change the last bit is said of a resume."""
    run = lab.run(lab.config(training__max_steps=4), stop_after=2)
    state = run.trainer.state.advance(fingerprint={**run.prepared.fingerprint, key: was})
    notes = check_same_run(state, dict(run.prepared.fingerprint))
    assert notes == [f"{key} {was} -> {run.prepared.fingerprint[key]}"]
    same = run.trainer.state.advance(fingerprint=run.prepared.fingerprint)
    on_cuda = check_same_run(same, {**run.prepared.fingerprint, "device": "cuda"})
    assert "cuda adds in no fixed order" in on_cuda
