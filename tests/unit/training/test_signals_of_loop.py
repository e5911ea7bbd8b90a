"""What a signal does to a run: the first one asks, a Ctrl-C after it does not wait."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from llmt.training.signals import STOP_SIGNALS, stop_on_signal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

LIMIT = 60.0
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def send(signum: int) -> bool:
    """A real signal to this process, heard when this returns; whether it raised KeyboardInterrupt."""
    try:
        os.kill(os.getpid(), signum)
        time.sleep(0.001)
    except KeyboardInterrupt:  # would end pytest
        return True
    return False


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """Numbers of the signals that this test's own handlers hear; pytest's handlers come back after it."""
    came: list[int] = []
    earlier = {signum: signal.signal(signum, lambda number, _: came.append(number)) for signum in STOP_SIGNALS}
    yield came
    for signum, handler in earlier.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("first", [INT, TERM, HUP])
def test_the_first_signal_asks_once(first: int, heard: list[int]) -> None:
    """Another SIGTERM or SIGHUP is not told and raises nothing; a SIGINT raises KeyboardInterrupt, each time."""
    asked: list[int] = []
    with stop_on_signal(asked.append):
        assert asked == []
        assert not send(first)
        assert asked == [first]
        assert [send(signum) for signum in (TERM, HUP, INT, TERM, INT)] == [False, False, True, False, True]
    assert asked == [first]
    assert heard == []


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError])
def test_earlier_handlers_are_put_back(error: type[BaseException] | None, heard: list[int]) -> None:
    """However the body ends; and what asked one run to stop asks nothing of the next."""
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    for _ in range(2):
        asked: list[int] = []
        with nullcontext() if error is None else pytest.raises(error), stop_on_signal(asked.append):
            assert all(signal.getsignal(signum) not in before for signum in STOP_SIGNALS)
            assert not send(INT)
            if error is not None:
                raise error
        assert asked == [INT]
        assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
    assert heard == []
    for signum in STOP_SIGNALS:
        assert not send(signum)
    assert heard == list(STOP_SIGNALS)


@pytest.mark.parametrize("ignored", [INT, TERM, HUP])
def test_an_ignored_signal_stays_ignored(ignored: int) -> None:
    """As under nohup: it asks nothing, and is ignored afterwards too; the others are heard."""
    signal.signal(ignored, signal.SIG_IGN)
    asked: list[int] = []
    other = TERM if ignored != TERM else HUP
    with stop_on_signal(asked.append):
        assert not send(ignored)
        assert asked == []
        assert not send(other)
        assert asked == [other]
        assert not send(ignored)  # SIGINT too: it raises nothing
    assert asked == [other]
    assert signal.getsignal(ignored) is signal.SIG_IGN


HELD = '''
import os, time
from pathlib import Path
import torch
from torch import nn
from llmt import BaseLanguageModel, register_model

@register_model("held")
class Held(BaseLanguageModel):
    """Its sixth step does not end while the file `hold` is there; `beat` grows with every look."""

    def __init__(self, vocab_size, context_length):
        super().__init__()
        self.vocab_size, self.context_length = vocab_size, context_length
        self.embed, self.mix = nn.Embedding(vocab_size, 8), nn.Linear(8, 8)
        self.steps = 0

    def hidden_states(self, input_ids, cache=None, position_ids=None):
        self.steps += self.training
        while self.training and self.steps == 6 and os.path.exists("hold"):
            with open("beat", "ab") as beat:
                beat.write(b".")
            time.sleep(0.01)
        return self.mix(self.embed(input_ids))

    def output_weight(self):
        return self.embed.weight
'''


class HeldRun:
    """`llmt train` in a step that does not end, with checkpoints of steps 2 and 4.

    Args:
        where: Its directory, with `text.txt`.
        environment: Of the process.
    """

    def __init__(self, where: Path, environment: dict[str, str]) -> None:
        self.where, self.run = where, where / "runs" / "held"
        (where / "held.py").write_text(HELD, encoding="utf-8")
        (where / "hold").touch()
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "llmt", "train", "--data", "text.txt", "--name", "held", "--max-steps", "8",
                "--custom", "model_type=held", "--algo", "byte", "--block-size", "16", "--save-steps", "2",
                "--per-device-train-batch-size", "2", "--optimizer", "adamw", "--eval-strategy", "no",
                "--device", "cpu", "--precision", "fp32", "--compile", "never", "--sample-tokens", "0",
            ],
            cwd=where, env={**environment, "LLMT_PLUGINS": "./held.py"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_beats(self) -> None:
        """Until the main thread has looked three times more: it has run Python since, so that it heard what came."""
        until, beat = time.monotonic() + LIMIT, self.where / "beat"
        wanted = (beat.stat().st_size if beat.exists() else 0) + 3
        while not beat.exists() or beat.stat().st_size < wanted:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)

    def checkpoints(self) -> list[str]:
        """What of the run has to do with checkpoints, half-written ones too."""
        return sorted(path.name for path in self.run.iterdir() if "checkpoint" in path.name)

    def end(self) -> tuple[int, list[str]]:
        """The exit code and the last two lines of stderr, of a run that ends by itself."""
        _, err = self.process.communicate(timeout=LIMIT)
        assert "Traceback" not in err, err
        return self.process.returncode, err.splitlines()[-2:]


@pytest.fixture
def held_run(text_file: Path, environment: dict[str, str]) -> Iterator[HeldRun]:
    run = HeldRun(text_file.parent, environment)
    try:
        run.wait_for_beats()
        yield run
    finally:
        run.process.kill()
        run.process.communicate()


def test_a_second_ctrl_c_does_not_wait_for_the_step(held_run: HeldRun) -> None:
    """The first one waits for the step under way; the second ends in the midst of it, and saves nothing more."""
    saved = held_run.checkpoints()
    assert saved == ["checkpoint-2", "checkpoint-4"]
    held_run.process.send_signal(signal.SIGINT)
    held_run.wait_for_beats()
    held_run.process.send_signal(signal.SIGINT)
    code, lines = held_run.end()
    assert (held_run.where / "hold").exists()
    assert code == 130
    assert lines == [
        f"error: stopped at once; {Path('runs', 'held', 'checkpoint-4')} is the last checkpoint",
        "hint: llmt train runs/held --resume",
    ]
    assert held_run.checkpoints() == saved


def test_one_ctrl_c_and_a_scheduler_after_it_wait_for_the_step(held_run: HeldRun) -> None:
    """SIGTERM after SIGINT does not throw the step away: it is finished, and saved."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        held_run.process.send_signal(signum)
        held_run.wait_for_beats()
    (held_run.where / "hold").unlink()
    code, lines = held_run.end()
    assert code == 130
    assert lines[0].startswith("error: stopped by SIGINT at step 6, saved ")
    assert held_run.checkpoints() == ["checkpoint-4", "checkpoint-6"]
