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
        (_DOCUMENTS, b"caf\xe9", "-:1: byte 0xe9 at offset 3 is not UTF-8"),
        (_DOCUMENTS, b"a\0", "-:1: byte 0x00 at offset 1"),
        (f"{_DOCUMENTS} and {_DOCUMENTS}", b" ", "-: no text in standard input"),
    ],
)
def test_what_standard_input_cannot_do(run_python: Run, what: str, stdin: bytes, said: str) -> None:
    """Exit code 3, one line and a hint."""
    code, message, hint = json.loads(run_python(_READ, what, stdin=stdin))
    assert code == 3
    assert message.startswith(said)
    assert hint


def test_it_can_be_read_as_often_as_a_file(run_python: Run) -> None:
    """In turn, at the same time, in blocks, by name twice; and it comes in parts."""
    text = "four words of text\n" * 300_000
    what = (
        "[[[d.text for d in open_documents(['-', '-'])], list(open_blocks(['-'])), "
        "[b for pair in zip(open_blocks(['-']), open_blocks(['-'])) for b in pair]]]"
    )
    twice, once, paired = json.loads(run_python(_READ, what, stdin=text.encode()))[0]
    assert "".join(once) == text
    assert len(once) > 10
    assert twice == [*once, *once]
    assert paired == [block for block in once for _ in range(2)]


def test_its_fingerprint_is_of_its_content(run_python: Run) -> None:
    """Before and after it was read; another text has another one."""
    what = "[fingerprint_sources(['-']), len(list(open_documents(['-']))), fingerprint_sources(['-'])]"
    first, other = (json.loads(run_python(_READ, what, stdin=text)) for text in (b"text", b"tixt"))
    assert first[0] == first[2] != other[0]
    assert json.loads(run_python(_READ, what, stdin=b"text")) == first


def test_it_is_divided_and_named_by_line(run_python: Run) -> None:
    """As a text file is."""
    what = "[(d.text, d.source) for d in open_documents(['-'], __import__('llmt').text.reading.Reading(split_on='--'))]"
    assert json.loads(run_python(_READ, what, stdin=b"one\n--two")) == [["one\n", "-:1"], ["two", "-:2"]]


def test_nothing_is_left_behind(run_python: Run, tmp_path: Path) -> None:
    """The temporary file is there while the process runs, readable by its user alone."""
    code = (
        "import os, stat, tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from llmt.text.sources import open_documents; list(open_documents(['-']))\n"
        "print([oct(stat.S_IMODE(entry.stat().st_mode)) for entry in os.scandir(sys.argv[1])])"
    )
    assert run_python(code, str(tmp_path), stdin=b"text") == "['0o600']"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_a_storage_error(run_python: Run) -> None:
    """Exit code 6, and the folder is named."""
    code = _READ.replace("import json, sys\n", "import json, os, sys, tempfile\ntempfile.mkstemp = MAKE\n").replace(
        "MAKE", "lambda prefix: (os.open('/dev/full', os.O_WRONLY), '/nowhere/llmt-input')"
    )
    exit_code, message, hint = json.loads(run_python(code, _DOCUMENTS, stdin=b"text"))
    assert exit_code == 6
    assert message.startswith("-: standard input cannot be kept in ")
    assert message.endswith("No space left on device")
    assert "TMPDIR" in hint


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
