"""Standard input as a source."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmt.errors import DataError
from llmt.text.sources import fingerprint_sources, open_documents

Run = Callable[..., str]

_READ = """
import json, sys
from llmt.errors import LlmtError
from llmt.text.sources import fingerprint_sources, open_blocks, open_documents, open_texts
try:
    found = eval(sys.argv[1])
except LlmtError as error:
    found = [error.exit_code, error.message, error.hint]
print(json.dumps(found))
"""
_DOCUMENTS = "[(d.text, d.source) for d in open_documents(['-'])]"


@pytest.mark.parametrize("what", [_DOCUMENTS, "list(open_blocks(['-']))", "list(open_texts('-'))"])
def test_standard_input_is_one_document(run_python: Run, what: str) -> None:
    """Byte for byte, without a byte order mark."""
    text = "one\r\n{} ä 四\n\n"
    found = json.loads(run_python(_READ, what, stdin=b"\xef\xbb\xbf" + text.encode()))
    assert found == ([[text, "-"]] if what == _DOCUMENTS else [text])


def test_it_stands_among_other_sources(run_python: Run, tmp_path: Path) -> None:
    """In the order given."""
    (tmp_path / "a.txt").write_text("file")
    what = f"[d.text for d in open_documents([{str(tmp_path / 'a.txt')!r}, '-', {str(tmp_path)!r}])]"
    assert json.loads(run_python(_READ, what, stdin=b"piped")) == ["file", "piped", "file"]


@pytest.mark.parametrize(
    ("what", "stdin", "said"),
    [
        (_DOCUMENTS, b"", "-: no text in standard input"),
        (_DOCUMENTS, b" \n", "-: no text in standard input"),
        (_DOCUMENTS, b"caf\xe9", "-: byte 0xe9 at offset 3 is not UTF-8"),
        (_DOCUMENTS, b"a\0", "-: byte 0x00 at offset 1"),
        ("list(open_documents(['-', '-']))", b"text", "-: standard input can be read only once"),
        (f"{_DOCUMENTS} and {_DOCUMENTS}", b"text", "-: no text in standard input, or it was read before"),
        ("fingerprint_sources(['-'])", b"text", "-: standard input can be read only once, and this reads"),
    ],
)
def test_what_standard_input_cannot_do(run_python: Run, what: str, stdin: bytes, said: str) -> None:
    """Exit code 3, one line and a hint."""
    code, message, hint = json.loads(run_python(_READ, what, stdin=stdin))
    assert code == 3
    assert message.startswith(said)
    assert hint


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudoterminal")
def test_a_terminal_is_refused_at_once(tmp_path: Path) -> None:
    """Instead of waiting for somebody to type."""
    import pty

    ours, theirs = pty.openpty()
    try:
        shown = subprocess.run(
            [sys.executable, "-c", _READ, _DOCUMENTS], stdin=theirs, capture_output=True, check=True, timeout=30
        )
    finally:
        os.close(ours)
        os.close(theirs)
    code, message, hint = json.loads(shown.stdout)
    assert (code, message[:31]) == (3, "-: standard input is a terminal")
    assert hint.startswith("send it: cat FILE | ")


def test_a_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without one has None in its place."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="there is no standard input"):
        open_documents(["-"])
    with pytest.raises(DataError, match="there is no standard input"):
        fingerprint_sources(["-"])
