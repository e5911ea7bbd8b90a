"""Output into pipes, closed streams, poor terminals and other encodings."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmt.cli.output import Output
from llmt.errors import LlmtError

posix = pytest.mark.skipif(os.name != "posix", reason="closes streams as a POSIX shell does")


@posix
@pytest.mark.parametrize("command", ["config schema", "generate runs/quickstart -p x -n 30", "config show"])
def test_a_reader_that_goes_away(environment: dict[str, str], finished: Any, command: str) -> None:
    """`llmt ... | head -c 1` ends quietly, with 0 or 141."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "llmt", *command.split()], cwd=finished[0], env=environment,
        stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    os.close(writer)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


@posix
def test_training_goes_on_when_nobody_reads(
    environment: dict[str, str], text_file: Path, tiny: tuple[str, ...]
) -> None:
    """With the readers of stdout and stderr gone, a run still comes to its end."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "3", "--logging-steps", "1")
    done = subprocess.run(
        [sys.executable, "-m", "llmt", *arguments], cwd=text_file.parent, env=environment,
        stdin=subprocess.DEVNULL, stdout=writer, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode in (0, 141)
    assert (text_file.parent / "runs" / "quickstart" / "result.json").is_file()


@posix
@pytest.mark.parametrize("closed", ["<&- 2>&-", "<&- >&-"])
def test_streams_that_are_closed(environment: dict[str, str], finished: Any, closed: str) -> None:
    """A process that is started without a stream does its work, and messages do not go among the results."""
    line = f'"{sys.executable}" -m llmt generate runs/quickstart -p the -n 2 {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=finished[0], env=environment, capture_output=True, encoding="utf-8",
        stdin=subprocess.DEVNULL, errors="replace",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the") is (">&-" not in closed.replace("2>&-", ""))


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(environment: dict[str, str], tmp_path: Path) -> None:
    """A result that cannot be written is exit 6 in two lines."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmt", "config", "schema"], cwd=tmp_path, env=environment, stdout=full,
            stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    assert done.returncode == 6
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize(
    "env",
    [
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"COLUMNS": "0", "LINES": "0"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_poor_terminals(llmt: Any, finished: Any, env: dict[str, str]) -> None:
    """Neither a small, colourless or dumb terminal nor an ASCII one breaks a command or its JSON."""
    prompt = "caf\u00e9 \u732b \u202e"
    result = llmt("config", "show", "--name", prompt, "--json", cwd=finished[0], env=env)
    assert result.code == 0, result.err
    name = json.loads(result.out)["config"]["name"]
    assert name.encode("utf-8", "surrogateescape") == prompt.encode()
    shown = llmt("config", "show", "--origin", "--name", prompt, cwd=finished[0], env=env)
    assert shown.code == 0, shown.err
    assert "\x1b" not in shown.out + shown.err


def test_a_table_in_a_pipe_has_one_line_for_each_row(inside: Any, tmp_path: Path) -> None:
    """Long values are neither cut nor folded where no terminal limits the width."""
    name = "a" * 300
    result = inside("config", "show", "--origin", "--name", name)
    assert any(name in line for line in result.out.splitlines())


def test_an_error_is_two_lines_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks inside a message or a hint do not make more lines."""
    Output().error(LlmtError("one\ntwo\r\nthree", "four\n\nfive"))
    assert capsys.readouterr().err.splitlines() == ["error: one two\\x0d three", "hint: four  five"]


def test_json_is_ascii_and_has_no_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is the same in every encoding, without control characters, and every program reads it."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"a": float("inf"), "b": [float("nan"), 1.5], "c": "\x1b\x7f\x9b\u202e\u732b\ud800"}
    Output().json(value)
    assert stream.getvalue().isascii()
    assert stream.getvalue()[:-1].isprintable()
    assert json.loads(stream.getvalue()) == {**value, "a": None, "b": [None, 1.5]}
