"""Finding finished runs and the model that a path means."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import publish_into
from llmt.checkpoints.runs import find_runs, finished_record, newest_finished, resolve_model_directory
from llmt.errors import ModelFileError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def finish(root: Path, name: str, hours: int = 0, kind: str = "full") -> Path:
    run = root / name
    run.mkdir(parents=True)
    (run / layout.RUN_CONFIG).write_text("seed: 1\n")
    with publish_into(run, extra={}) as staged:
        staged.write_file(layout.MODEL_FILE if kind == "full" else layout.ADAPTER_MODEL, b"weights")
        staged.write_file(layout.CONFIG_FILE if kind == "full" else layout.ADAPTER_CONFIG, b"{}")
        moment = NOON + timedelta(hours=hours)
        staged.write_json(layout.RESULT, finished_record(name=name, kind=kind, step=5, finished_at=moment))
    return run


def test_the_newest_run_is_the_one_whose_record_says_so(tmp_path: Path) -> None:
    """Neither names nor file times decide, and a kind is found among its own."""
    late, early = finish(tmp_path, "a", hours=2), finish(tmp_path, "z", hours=1)
    adapter = finish(tmp_path, "m", hours=3, kind="adapter")
    os.utime(late / layout.RESULT, (0, 0))
    os.utime(early / layout.RESULT, (2**31, 2**31))
    assert [run.path for run in find_runs(tmp_path)] == [early, late, adapter]
    newest, newest_adapter = newest_finished(tmp_path), newest_finished(tmp_path, "adapter")
    assert newest is not None
    assert newest.path == late
    assert newest.finished_at == NOON + timedelta(hours=2)
    assert newest_adapter is not None
    assert newest_adapter.path == adapter


def test_unfinished_and_damaged_runs_are_not_found(tmp_path: Path) -> None:
    """Without a record, a manifest or the right sizes, a run does not count as finished."""
    (finish(tmp_path, "a") / layout.MANIFEST).unlink()
    (finish(tmp_path, "b") / layout.RESULT).unlink()
    (finish(tmp_path, "c") / layout.MODEL_FILE).write_bytes(b"longer than before")
    (finish(tmp_path, "d") / layout.RESULT).write_text("{")
    (tmp_path / "e").mkdir()
    (tmp_path / "f").write_text("a file")
    assert find_runs(tmp_path) == []
    assert find_runs(tmp_path / "missing") == []
    assert newest_finished(tmp_path) is None


@pytest.mark.parametrize(
    "record",
    [
        '{"finished": false}',
        '{"finished": true, "finished_at": "2026-01-01T00:00:00", "kind": "full", "step": 1, "name": "x"}',
        "[]",
    ],
)
def test_a_record_without_what_is_needed_is_ignored(tmp_path: Path, record: str) -> None:
    """A time without a zone is no time; a record that is not finished is none."""
    run = finish(tmp_path, "a")
    with publish_into(run, extra={}) as staged:
        staged.write_file(layout.RESULT, record.encode())
    assert find_runs(tmp_path) == []


def test_what_is_a_model_directory(tmp_path: Path) -> None:
    """A finished run, a bare directory with config and weights, and an adapter all are."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / layout.CONFIG_FILE).write_text("{}")
    (bare / layout.MODEL_INDEX).write_text("{}")
    for path in (finish(tmp_path, "a"), finish(tmp_path, "b", kind="adapter"), bare):
        assert resolve_model_directory(path, tmp_path) == path


def test_what_is_not_a_model_says_what_there_is(tmp_path: Path) -> None:
    """Each refusal exits with 4 and hints at what to type: the runs that exist, a checkpoint, or convert."""
    run = finish(tmp_path, "good")
    unfinished, damaged = finish(tmp_path, "open"), finish(tmp_path, "torn")
    (unfinished / layout.MANIFEST).unlink()
    (unfinished / "checkpoint-20").mkdir()
    (unfinished / "checkpoint-9").mkdir()
    (damaged / layout.MODEL_FILE).write_bytes(b"")
    pickled, empty, file = tmp_path / "pickled", tmp_path / "empty", tmp_path / "x.pt"
    pickled.mkdir()
    empty.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"")
    file.write_bytes(b"")
    cases = {
        tmp_path / "missing": ("does not exist", f"runs found: {run}"),
        unfinished: ("not finished", "checkpoint-20"),
        damaged: ("damaged", "another"),
        pickled: ("no config.json that describes them", "runs found"),
        empty: ("has no config.json", "runs found"),
        file: ("is a file", f"name {tmp_path}"),
    }
    for path, (reason, hint) in cases.items():
        with pytest.raises(ModelFileError, match=reason) as caught:
            resolve_model_directory(path, tmp_path)
        assert hint in caught.value.hint
        assert caught.value.exit_code == 4
