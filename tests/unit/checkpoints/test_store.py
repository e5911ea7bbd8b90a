"""Checkpoints of a run: saving, choosing, keeping, and what a killed process leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llmt.checkpoints import layout
from llmt.checkpoints.atomic import StagedDirectory, publish_into
from llmt.checkpoints.manifest import verify_manifest
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import ModelFileError, StorageError


def fill(staged: StagedDirectory) -> None:
    staged.write_file(layout.MODEL_FILE, [b"w" * 1000, b"v" * 1000])
    staged.write_json(layout.STATE, {"x": 1})


def saved(directory: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(directory / "run")
    for step in steps:
        store.save(step, fill, {"run": "r"})
    return store


def test_the_latest_is_the_highest_step_not_the_last_written(tmp_path: Path) -> None:
    """Steps are compared as numbers; the order of writing and file times say nothing."""
    store = saved(tmp_path, 100, 1000, 20)
    os.utime(store.path(20), (2**31, 2**31))
    latest = store.latest()
    assert latest is not None
    assert (latest.step, latest.path) == (1000, store.path(1000))
    assert latest.manifest.extra == {"step": 1000, "run": "r"}
    assert store.steps() == [20, 100, 1000]
    assert CheckpointStore(tmp_path / "none").latest() is None


def test_a_damaged_checkpoint_is_set_aside_and_reported(tmp_path: Path) -> None:
    """The step before it is used; the damaged one is renamed, not deleted, and reported once with the reason."""
    store = saved(tmp_path, 1, 2, 3)
    (store.path(3) / layout.MANIFEST).unlink()
    weights = store.path(2) / layout.MODEL_FILE
    weights.write_bytes(b"x" * 2000)
    reports: list[str] = []
    latest = store.latest(reports.append)
    assert latest is not None
    assert latest.step == 1
    assert ["checkpoint-3" in reports[0], "sha256 differs" in reports[1], len(reports)] == [True, True, 2]
    bad = sorted(path.name for path in store.directory.iterdir() if path.name.startswith(layout.DAMAGED_PREFIX))
    assert len(bad) == 2
    assert (store.directory / bad[0] / layout.MODEL_FILE).read_bytes() == b"x" * 2000


def _strace_works() -> bool:
    """Whether there is one that may trace here."""
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-o", os.devnull, "true"], check=False).returncode == 0


_READ = """
import json, sys
from pathlib import Path
from llmt.checkpoints.store import CheckpointStore
from llmt.errors import ModelFileError
store, said, named = CheckpointStore(Path(sys.argv[1])), [], ""
found = store.latest(said.append)
try:
    store.verified(3)
except ModelFileError as error:
    named = error.message
print(json.dumps([found and found.step, said, named]))
"""


@pytest.mark.skipif(not _strace_works(), reason="needs strace, which makes the system refuse a call")
@pytest.mark.parametrize("name", [layout.MODEL_FILE, layout.MANIFEST])
def test_a_disk_that_cannot_read_proves_no_damage(tmp_path: Path, name: str) -> None:
    """A checkpoint that the disk cannot read now is passed over and said, and stays: it may be whole all the same."""
    store = saved(tmp_path, 2, 3)
    refuse = ["strace", "-o", os.devnull, "-P", str(store.path(3) / name), "-e", "inject=read:error=EIO"]
    command = [*refuse, sys.executable, "-c", _READ, str(store.directory)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    found, said, named = json.loads(shown.stdout)
    assert found == 2
    assert len(said) == 1
    assert "checkpoint-3 cannot be read now" in said[0]
    assert f"{name}: cannot be read: Input/output error" in said[0]
    assert "damaged" not in named
    assert f"{name}: cannot be read: Input/output error" in named
    assert store.steps() == [2, 3]
    latest = store.latest()
    assert latest is not None
    assert latest.step == 3


def test_a_renamed_checkpoint_is_not_another_step(tmp_path: Path) -> None:
    """A copy under another step's name does not count as that step."""
    store = saved(tmp_path, 1)
    store.path(1).rename(store.path(9))
    assert store.latest() is None


def test_a_checkpoint_of_a_newer_llmt_is_left_alone(tmp_path: Path) -> None:
    """An unknown format is not damage: nothing is renamed, and the error says so."""
    store = saved(tmp_path, 1, 2)
    manifest = store.path(2) / layout.MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ModelFileError, match="format '99'"):
        store.latest()
    assert store.steps() == [1, 2]


def test_retention_never_removes_the_newest_the_best_or_the_source(tmp_path: Path) -> None:
    """The oldest go first; what is to be kept counts towards the limit but always stays."""
    store = saved(tmp_path, 1, 2, 3, 4, 5)
    assert store.retain(3, keep={1}) == [2, 3]
    assert store.retain(1, keep={1}) == [4]
    assert store.steps() == [1, 5]
    assert store.retain(1, keep={1}) == []
    assert store.retain(1) == [1]
    with pytest.raises(ValueError, match="at least 1"):
        store.retain(0)
    assert store.steps() == [5]
    assert [path.name for path in store.directory.iterdir()] == ["checkpoint-5"]


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    """A resumed run that reaches a step again replaces that checkpoint."""
    store = saved(tmp_path, 1)
    store.save(1, lambda staged: staged.write_file("other", b"2"))
    assert sorted(verify_manifest(store.path(1)).files) == ["other"]
    assert [path.name for path in store.directory.iterdir()] == ["checkpoint-1"]


def test_a_planted_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """A link where the checkpoint is to stand does not redirect a single byte."""
    store = saved(tmp_path, 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    store.path(2).symlink_to(outside)
    store.save(2, fill)
    assert not store.path(2).is_symlink()
    assert list(outside.iterdir()) == []


def test_cleaning_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    """Temporary and half-deleted folders go; checkpoints, damaged ones and other files stay."""
    store = saved(tmp_path, 1)
    for name in (".tmp-checkpoint-2-aa", ".del-checkpoint-0-bb", ".bad-checkpoint-3-cc", "notes"):
        (store.directory / name).mkdir()
        (store.directory / name / "f").write_text("x")
    assert store.clean() == [".del-checkpoint-0-bb", ".tmp-checkpoint-2-aa"]
    assert sorted(path.name for path in store.directory.iterdir()) == [".bad-checkpoint-3-cc", "checkpoint-1", "notes"]


def test_the_last_whole_checkpoint_is_brought_back(tmp_path: Path) -> None:
    """A process that died while it replaced its only checkpoint has not lost it."""
    store = saved(tmp_path, 4)
    store.path(4).rename(store.directory / ".del-checkpoint-4-0123abcd")
    store.clean()
    latest = store.latest()
    assert latest is not None
    assert latest.step == 4


def test_a_read_only_run_directory_is_a_storage_error(tmp_path: Path) -> None:
    """A run directory that is a file is refused with exit code 6."""
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError) as caught:
        CheckpointStore(tmp_path / "run").save(1, fill)
    assert caught.value.exit_code == 6


CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


def work(store: CheckpointStore) -> None:
    """What is killed at every step: a save, a save over it, and retention."""
    store.save(2, fill)
    store.save(2, fill)
    store.retain(1)


def die_at(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that is killed (SIGKILL) before its call `number` that may change the disk.

    Returns whether it was killed; False when it was done before.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    count = 0

    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    action()
    os._exit(0)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed before each call that changes the disk, a process leaves a whole step, and the next one goes on."""
    for number in range(1, 500):
        store = saved(tmp_path / str(number), 1)
        if not die_at(number, partial(work, store)):
            break
        damaged: list[str] = []
        store.clean()
        latest = store.latest(damaged.append)
        assert latest is not None, number
        assert latest.step in (1, 2)
        assert damaged == []
        store.save(2, fill)
        store.retain(1)
        assert [path.name for path in store.directory.iterdir()] == ["checkpoint-2"]
    assert 40 < number < 400


def publish(root: Path, data: bytes, names: tuple[str, ...]) -> None:
    with publish_into(root, extra={}) as staged:
        for name in (*names, layout.CONFIG_FILE):
            staged.write_file(name, data)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_while_a_model_is_published_never_mixes_two(tmp_path: Path) -> None:
    """At any kill the root verifies as the old or the new model, or is no finished model; no config beside a mix."""
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", layout.MODEL_INDEX)
    for number in range(1, 500):
        root = tmp_path / str(number)
        root.mkdir()
        publish(root, b"old", shards)
        killed = die_at(number, partial(publish, root, b"new", (layout.MODEL_FILE,)))
        models = {path.read_bytes() for path in root.iterdir() if layout.is_weight_file(path.name)}
        if (root / layout.CONFIG_FILE).exists():
            assert models == {(root / layout.CONFIG_FILE).read_bytes()}
        if (root / layout.MANIFEST).exists():
            verify_manifest(root)
        if not killed:
            break
        publish(root, b"new", (layout.MODEL_FILE,))
        CheckpointStore(root).clean()
        assert sorted(path.name for path in root.iterdir()) == sorted(
            [layout.MANIFEST, "config.json", "model.safetensors"]
        )
    assert models == {b"new"}
    assert 15 < number < 400
