"""Real processes, stopped by real signals."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

STEPS = "150"


def arguments_of(tiny: tuple[str, ...], steps: str = STEPS) -> tuple[str, ...]:
    """A run of some seconds that saves often."""
    return (
        "train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", steps,
        "--save-steps", "30", "--eval-steps", "75", "--logging-steps", "5",
    )  # fmt: skip


def weights(directory: Path) -> str:
    """SHA-256 of the finished model."""
    return hashlib.sha256((directory / "runs" / "quickstart" / "model.safetensors").read_bytes()).hexdigest()


@contextmanager
def running(arguments: tuple[str, ...], where: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process of llmt that is ended with the body."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llmt", *arguments], cwd=where, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", bufsize=1, errors="replace",
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], step: int) -> None:
    """Read stderr up to the line of a step."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.replace(" ", "").startswith(f"step{step}/"):
            return
    raise AssertionError(f"the process ended before step {step}")


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for the end: the exit code and the last two lines of stderr."""
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-2:]


@pytest.fixture(scope="module")
def whole(llmt: Any, tmp_path_factory: pytest.TempPathFactory, finished: Any, tiny: tuple[str, ...]) -> str:
    """The weights of a run that nothing interrupted."""
    where = tmp_path_factory.mktemp("whole")
    (where / "text.txt").write_bytes((finished[0] / "text.txt").read_bytes())
    result = llmt(*arguments_of(tiny), cwd=where)
    assert result.code == 0, result.err
    return weights(where)


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))]
)
def test_a_signal_saves_and_the_run_goes_on(
    inside: Any, environment: dict[str, str], text_file: Path, tiny: tuple[str, ...], whole: str, name: str
) -> None:
    """One signal: a checkpoint, two lines, 128 + its number; `--resume` ends with the weights of the whole run."""
    where, signum = text_file.parent, getattr(signal, name)
    with running(arguments_of(tiny), where, environment) as process:
        wait_for(process, 10)
        process.send_signal(signum)
        code, lines = end(process)
    assert code == 128 + signum
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: llmt train runs/quickstart --resume")
    saved = next(word for word in lines[0].split() if "checkpoint-" in word)
    assert (where / saved / "MANIFEST.json").is_file()
    assert inside(*lines[1].split()[2:], cwd=where).code == 0
    assert weights(where) == whole


def test_ctrl_c_is_answered_at_once(environment: dict[str, str], text_file: Path, tiny: tuple[str, ...]) -> None:
    """Somebody at a terminal reads that it was heard, and then where the run was saved."""
    screen, end_of_process = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmt", *arguments_of(tiny, "5000")], cwd=text_file.parent,
        env={**environment, "TERM": "xterm-256color"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=end_of_process,
    )  # fmt: skip
    os.close(end_of_process)
    shown = b""
    try:
        while b"tok/s" not in shown:
            shown += os.read(screen, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # how Linux says that the other end is closed
            while more := os.read(screen, 4096):
                shown += more
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    heard, saved = shown.find(b"stopping after this step"), shown.find(b"stopped by SIGINT")
    assert 0 < heard < saved


def test_a_kill_loses_only_what_was_not_saved(
    inside: Any, environment: dict[str, str], text_file: Path, tiny: tuple[str, ...], whole: str
) -> None:
    """After `kill -9`, `--resume` ends with the weights of the whole run, bit for bit."""
    where = text_file.parent
    with running(arguments_of(tiny), where, environment) as process:
        wait_for(process, 70)
        process.kill()
        process.wait()
    resumed = inside("train", "runs/quickstart", "--resume", cwd=where)
    assert resumed.code == 0, resumed.err
    assert weights(where) == whole


@pytest.mark.parametrize(("name", "delay"), [("SIGINT", 1.0), ("SIGTERM", 2.5)])
def test_a_signal_before_training(
    environment: dict[str, str], tmp_path: Path, tiny: tuple[str, ...], listing_of: Any, name: str, delay: float
) -> None:
    """While llmt starts, or reads text, a signal ends it in two lines and leaves nothing behind."""
    signum = getattr(signal, name)
    text = " ".join(f"word{n % 9973} of{n % 7919}" for n in range(600_000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    before = listing_of(tmp_path)
    with running(arguments_of(tiny), tmp_path, environment) as process:
        time.sleep(delay)
        process.send_signal(signum)
        code, lines = end(process)
    assert code == 128 + signum, lines
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]
    assert listing_of(tmp_path) == before


def test_a_signal_while_writing_text(environment: dict[str, str], finished: Any) -> None:
    """`generate` and `eval` end on Ctrl-C with 130 and two lines."""
    with running(("generate", "runs/quickstart", "-p", "the", "-n", "1000000"), finished[0], environment) as process:
        assert process.stdout is not None
        process.stdout.read(4)
        process.send_signal(signal.SIGINT)
        code, lines = end(process)
    assert code == 130
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]


_SWALLOWED = """
import os, signal, sys, types
from llmt.cli import app

def hasty() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(1_000_000))
    except BaseException:
        pass
    raise AttributeError("half imported")

sys.modules["hasty"] = types.ModuleType("hasty")
sys.modules["hasty"].hasty = hasty
app.COMMANDS["hasty"] = ("hasty", "swallows a signal as a library does while it is imported")
sys.argv = ["llmt", "hasty"]
app.main()
"""


def test_a_signal_that_a_library_swallows_ends_the_command_nevertheless(environment: dict[str, str]) -> None:
    """What fails after it is no bug to report."""
    done = subprocess.run([sys.executable, "-c", _SWALLOWED], env=environment, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.splitlines()[0] == "error: stopped, and nothing new was saved"
    assert len(done.stderr.splitlines()) == 2
