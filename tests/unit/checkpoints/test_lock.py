"""One process per output directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmt.checkpoints import layout
from llmt.checkpoints.lock import output_lock
from llmt.errors import BusyOutputError

HOLDER = """
import sys
from pathlib import Path
from llmt.checkpoints.lock import output_lock
with output_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    """While another process holds the directory, taking it exits with 10 and names the holder."""
    holder = hold(tmp_path)
    try:
        expected = f"in use by process {holder.pid} on .* since 20"
        with pytest.raises(BusyOutputError, match=expected) as caught, output_lock(tmp_path):
            pass
        assert caught.value.exit_code == 10
    finally:
        holder.communicate("")
    with output_lock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """A holder that is killed leaves its record behind, and yet the next process gets the lock."""
    holder = hold(tmp_path)
    holder.kill()
    holder.communicate()
    assert json.loads((tmp_path / layout.LOCK_OWNER).read_text())["pid"] == holder.pid
    with output_lock(tmp_path):
        assert json.loads((tmp_path / layout.LOCK_OWNER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / layout.LOCK_OWNER).exists()


def test_the_lock_is_not_shared_within_a_process(tmp_path: Path) -> None:
    """Two runs in one process cannot share a directory either."""
    with output_lock(tmp_path / "new" / "run"), pytest.raises(BusyOutputError), output_lock(tmp_path / "new" / "run"):
        pass
