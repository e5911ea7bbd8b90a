"""Whether a file system keeps what checkpoints rely on: one that does, and several that do not."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmt.checkpoints.selftest import Finding, try_folder
from llmt.errors import StorageError
from llmt.system.children import start_child

NAMES = ["rename", "fsync", "lock", "flipped bit", "kill"]


def failed(findings: list[Finding]) -> dict[str, str]:
    """Name -> detail of what failed."""
    return {found.name: found.detail for found in findings if found.status == "fail"}


def test_a_usual_disk_holds(tmp_path: Path) -> None:
    """Everything holds, within the time, and nothing is left."""
    (tmp_path / "mine").write_text("x")
    began = time.monotonic()
    findings = list(try_folder(tmp_path, start_child))
    assert time.monotonic() - began < 20
    assert [found.name for found in findings] == NAMES
    assert failed(findings) == {}
    assert "12 processes were killed" in findings[-1].detail
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_can_be_left_in_the_middle(tmp_path: Path) -> None:
    """Who stops after the first line leaves nothing behind either."""
    findings = try_folder(tmp_path, start_child)
    assert next(findings).name == "rename"
    findings.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "reason"), [("none", "does not exist"), ("file", "a part of the path is a file")])
def test_where_nothing_can_be_written_is_a_storage_error(tmp_path: Path, name: str, reason: str) -> None:
    """A folder that is not there or is a file: exit code 6 with the reason, before anything is tried."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=reason) as caught:
        next(try_folder(tmp_path / name, start_child))
    assert caught.value.exit_code == 6


LIAR = '''
import os, sys, time
from pathlib import Path

def serve(task, directory, step="0"):
    """Says that it holds a lock which it never took, and saves in place, slowly, after it said so."""
    if task == "lock":
        os.write(1, b"held\\n")
        sys.stdin.read()
    for number in range(int(step) + 1, 10**6):
        os.write(1, f"{number}\\n".encode())
        folder = Path(directory) / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "state.json"):
            (folder / name).write_bytes(b"x" * 1000)
            time.sleep(0.05)
'''


def test_what_does_not_hold_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that keeps nobody out, and checkpoints that are half there after a kill."""
    (tmp_path / "liar.py").write_text(LIAR, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def start_liar(_: str, *arguments: str) -> Any:
        return start_child("liar", *arguments)

    (tmp_path / "disk").mkdir()
    found = failed(list(try_folder(tmp_path / "disk", start_liar)))
    assert sorted(found) == ["kill", "lock"]
    assert found["lock"] == "a second process got the lock that the first one holds"
    assert found["kill"].startswith(("after a kill checkpoint-", "step "))
    assert list((tmp_path / "disk").iterdir()) == []


def _strace_works() -> bool:
    """Whether there is one that may trace here."""
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-o", os.devnull, "true"], check=False).returncode == 0


needs_strace = pytest.mark.skipif(not _strace_works(), reason="needs strace, which makes the system refuse a call")


def _doctor(call: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """The command, while the system refuses one of its calls, and of the processes that it starts."""
    command = ["strace", "-f", "-o", os.devnull, "-e", f"inject={call}", sys.executable, "-m", "llmt"]
    asked = ["doctor", "--selftest", str(directory)]
    return subprocess.run([*command, *asked], capture_output=True, text=True, check=False)


@needs_strace
def test_a_file_that_stands_for_a_lock_is_less(tmp_path: Path) -> None:
    """A file system without locks is said; how that is met is the library's choice, which older ones do not have."""
    shown = _doctor("flock:error=ENOSYS", tmp_path)
    (status,) = [line.split()[0] for line in shown.stdout.splitlines() if line.split()[1] == "lock"]
    assert status in ("warn", "fail")
    assert "UserWarning" not in shown.stderr
    assert shown.returncode == (6 if status == "fail" else 0)


@needs_strace
@pytest.mark.parametrize(("call", "name"), [("flock:error=ENOLCK", "lock"), ("fsync:error=EIO", "fsync")])
def test_a_system_that_refuses_a_call_fails(tmp_path: Path, call: str, name: str) -> None:
    """`llmt doctor --selftest` where no lock can be had, or the disk is dying: exit code 6, named."""
    shown = _doctor(call, tmp_path)
    assert shown.returncode == 6, shown.stderr
    assert any(line.split()[:2] == ["fail", name] for line in shown.stdout.splitlines()), shown.stdout
    assert "does not keep checkpoints safe" in shown.stderr
    assert name in shown.stderr
    assert list(tmp_path.iterdir()) == []
