"""Text from outside: never markup, and never a control character on a terminal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmt.cli.output import safe

HOSTILE = (
    "[/INST]", "[red]x", "[/v1]", "[link=http://x]y", ":smile:", "\x1b[2J", "\x1b]52;c;aGk=\x07", "\x1b]0;title\x07",
    "\x9b31m", "\x07\x08\x0b\x0c", "\u202eevil\u2066", "a\rb", "\x7f", "\ud800", "\u2028", "[", "\\[", "[[]]",
)  # fmt: skip
STYLE = re.compile(rb"\x1b\[[0-9;]*m")
LIVE = re.compile(rb"\x1b\[(\?25[lh]|[0-9]*[A-K])|\r")


def test_safe_spells_out_everything_that_moves_a_terminal() -> None:
    """Control, direction and surrogate characters become visible; all other text stays as it is."""
    for text in HOSTILE:
        shown = safe(text)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", shown)
    assert safe("caf\u00e9 \u732b \U0001f600\n\t[x]") == "caf\u00e9 \u732b \U0001f600\n\t[x]"
    assert safe("\x1b[2J") == "\\x1b[2J"


@pytest.mark.parametrize("text", [t for t in HOSTILE if "\ud800" not in t])
def test_errors_and_values_may_hold_anything(inside: Any, tmp_path: Path, text: str) -> None:
    """Names, values and prompts with markup or escapes are shown as text, in two lines or in the table."""
    for arguments in (
        ["generate", f"runs/{text}"],
        ["train", text],
        ["train", "--set", f"training.{text}=1"],
        ["train", "--learning-rate", text],
        ["train", "quickstart", "--data", text, "-o", "o"],
        ["tokenizer", "inspect", text],
        ["convert", f"./{text}"],
    ):
        result = inside(*arguments)
        assert result.code in (2, 3, 4), (arguments, result.err)
        assert [line.split(":")[0] for line in result.err.split("\n") if line] == ["error", "hint"], result.err
        assert "\x1b" not in result.err
        assert "\x9b" not in result.err
    shown = inside("config", "show", "--name", text, "--json")
    assert json.loads(shown.out)["config"]["name"] == text


def test_pieces_of_a_tokenizer_may_hold_anything(inside: Any, tmp_path: Path) -> None:
    """`tokenizer inspect` shows hostile pieces without sending them."""
    text = "".join(t for t in HOSTILE if "\ud800" not in t)
    (tmp_path / "in.txt").write_text(f"{text} and words\n" * 50, encoding="utf-8")
    made = inside("tokenizer", "train", "in.txt", "--vocab-size", "400", "-o", "t")
    assert made.code == 0, made.err
    result = inside("tokenizer", "inspect", "t", text, "--limit", "100")
    assert result.code == 0, result.err
    assert not set("\x1b\x9b\x07\x7f\u202e") & set(result.out)


pty_only = pytest.mark.skipif(os.name != "posix", reason="opens a pseudo-terminal")


def on_a_terminal(arguments: list[str], cwd: Path, environment: dict[str, str]) -> tuple[int, bytes]:
    """Run llmt with stdout and stderr on a pseudo-terminal; the exit code and every byte it sent."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmt", *arguments], cwd=cwd, env=environment,
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    sent = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        sent += piece
    os.close(ours)
    return process.wait(), sent


def foreign(sent: bytes) -> bytes:
    """What was sent, without the styles and the cursor movements of our own fixed words."""
    return LIVE.sub(b"", STYLE.sub(b"", sent))


@pty_only
def test_nothing_foreign_reaches_a_terminal(
    environment: dict[str, str], finished: Any, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """Prompts, names and errors on a real terminal: no escape but our own styles."""
    text = "".join(t for t in HOSTILE if "\ud800" not in t)
    for arguments, code in (
        (["generate", "runs/quickstart", "-n", "60", "-p", text], 0),
        (["generate", text.replace("/", "")], 4),
        (["config", "show", "--origin", "--name", text], 0),
        (["config", "show", "--name", text, "--json"], 0),
    ):
        ended, sent = on_a_terminal(arguments, finished[0], environment)
        assert ended == code, sent
        left = foreign(sent)
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", left), left
        assert not re.search("[\x80-\x9f\u202a-\u202e\u2066-\u2069\u2028]", left.decode("utf-8")), left


@pty_only
def test_training_on_a_terminal(
    environment: dict[str, str], tmp_path: Path, finished: Any, tiny: tuple[str, ...]
) -> None:
    """The live line of a run, on hostile names and text, sends our own styles only."""
    name = "[red]in\x1b[2J\u202e.txt"
    (tmp_path / name).write_text("\x1b]0;x\x07[/INST] \u202e words and \x9b31m more\n" * 200, encoding="utf-8")
    arguments = ["train", "quickstart", "--data", name, *tiny, "--max-steps", "3", "--sample-prompt", "[/b]\x1b[2J"]
    code, sent = on_a_terminal(arguments, tmp_path, environment)
    assert code == 0, sent
    left = foreign(sent)
    assert b"\x1b" not in left, left
    assert not set("\x9b\u202e") & set(left.decode("utf-8"))
    assert b"[/b]" in left
