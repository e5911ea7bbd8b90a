"""Files, folders and patterns."""

import json
import os
import sys
from pathlib import Path

import pytest

from llmt.errors import DataError, StorageError, UsageError
from llmt.text.reading import Reading
from llmt.text.sources import fingerprint_sources, open_blocks, open_documents, open_texts


def _texts(*sources: str | Path, **options: str) -> list[tuple[str, str]]:
    found = open_documents([str(source) for source in sources], **options)  # type: ignore[arg-type]
    return [(Path(document.source).name, document.text) for document in found]


def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    """Line ends, trailing space and rare separators stay; a byte order mark does not."""
    text = "one\r\ntwo\rthree \u2028 four\n\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert _texts(tmp_path / "a.txt") == [("a.txt", text)]


def test_jsonl_is_one_document_a_line(tmp_path: Path) -> None:
    """Lines end at LF alone; blank lines and blank texts are passed over; numbers are the file's."""
    rows = [{"text": "one\u2028still\r one"}, {"text": "  "}, {"text": "two", "id": 2}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    assert _texts(tmp_path / "a.jsonl") == [("a.jsonl:1", "one\u2028still\r one"), ("a.jsonl:5", "two")]


def test_the_text_column_can_be_named(tmp_path: Path) -> None:
    """`data.text_column` is the field that is read."""
    (tmp_path / "a.jsonl").write_text('{"question": "Why?", "text": 5}\n')
    assert _texts(tmp_path / "a.jsonl", text_column="question") == [("a.jsonl:1", "Why?")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', ":2:13: not JSON"),
        ('["text"]', ":2: a list where an object belongs"),
        ('{"body": "a", "id": 1}', ":2: no field 'text'; it has body, id"),
        ('{"text": null}', ":2: field 'text' is null"),
        ('{"text": 5}', ":2: field 'text' is int"),
        ('{"text": ["a"]}', ":2: field 'text' is list"),
        ('{"text": "\\ud800"}', ":2: field 'text' holds half a surrogate pair, \\ud800"),
        ('{"text": ' + "[" * 100_000, ":2: not JSON"),
        ('{"text": ' + "1" * 10_000 + "}", ":2: not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    """What is wrong in a .jsonl file stands with its line."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError) as error:
        _texts(path)
    assert error.value.message.startswith(f"{path}{reason}")
    assert error.value.hint


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("before", [0, 10, 3_000_000])
def test_the_offset_of_a_bad_byte_is_exact(tmp_path: Path, suffix: str, before: int) -> None:
    """Also millions of bytes into the file."""
    line = b'{"text": "caf\xc3\xa9"}\n'
    good = line * -(-before // len(line))
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(good + b'{"text": "caf\xe9"}\n' + line)
    with pytest.raises(DataError) as error:
        _texts(path)
    number = good.count(b"\n") + 1
    assert error.value.message == f"{path}:{number}: byte 0xe9 at offset {len(good) + 13} is not UTF-8"
    assert error.value.hint == "save it as UTF-8, or add --encoding-errors replace"


def test_bad_bytes_can_be_replaced(tmp_path: Path) -> None:
    """With `replace` U+FFFD stands for them, and for half a surrogate pair."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9!")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "caf\xe9 \\ud800 \\ud83d\\ude00"}')
    texts = [text for _, text in _texts(tmp_path, encoding_errors="replace")]
    assert texts == ["caf\ufffd!", "caf\ufffd \ufffd \U0001f600"]


def test_utf16_is_recognised(tmp_path: Path) -> None:
    """The error says what the file is."""
    (tmp_path / "a.txt").write_text("text", encoding="utf-16")
    with pytest.raises(DataError, match="offset 0 is not UTF-8: this is UTF-16"):
        _texts(tmp_path / "a.txt")


def test_a_folder_is_read_sorted_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    """Known suffixes in any case, folders inside it too; a blank file among others is passed over."""
    for name in ("b.txt", "a/z.MD", "a/y.text", "c.jsonl", ".hidden.txt", ".git/d.txt", "e.py", "f.db", "a.b/x.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "row"}' if name.endswith("jsonl") else name)
    (tmp_path / "blank.txt").write_text(" \n")
    assert _texts(tmp_path) == [
        ("y.text", "a/y.text"), ("z.MD", "a/z.MD"), ("x.md", "a.b/x.md"), ("b.txt", "b.txt"), ("c.jsonl:1", "row")
    ]  # fmt: skip


def test_patterns_are_sorted_and_reach_into_folders(tmp_path: Path) -> None:
    """`*` and `**`; files of any suffix that are text."""
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [text for _, text in _texts(tmp_path / "*.txt")] == ["a.txt", "b.txt"]
    assert [text for _, text in _texts(tmp_path / "**" / "*.txt")] == ["a.txt", "b.txt", "deep/c.txt"]
    assert [text for _, text in _texts(tmp_path / "d.l?g")] == ["d.log"]
    assert [text for _, text in _texts(tmp_path / "*.txt", tmp_path / "deep")] == [
        "a.txt",
        "b.txt",
        "deep/c.txt",
    ]
    with pytest.raises(DataError, match="no file matches"):
        _texts(tmp_path / "*.nothing")


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    """What exists is read."""
    (tmp_path / "a[1].txt").write_text("bracket")
    assert _texts(tmp_path / "a[1].txt") == [("a[1].txt", "bracket")]


def test_other_suffixes_are_read_if_they_are_text(tmp_path: Path) -> None:
    """A source file is text, a file with a NUL is not."""
    (tmp_path / "a.rst").write_text("text")
    (tmp_path / "b.dat").write_bytes(b"te\0xt")
    assert _texts(tmp_path / "a.rst") == [("a.rst", "text")]
    with pytest.raises(DataError, match="0x00 at offset 2"):
        _texts(tmp_path / "b.dat")


@pytest.mark.parametrize("name", ["a.xlsx", "a.db", "a.txt.xz", "a.npy", "a.PDF"])
def test_other_formats_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """The error says what this version reads."""
    (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=r"this version reads \.txt, \.md, .*\.parquet and \.arrow, not \."):
        open_documents([str(tmp_path / name)])


def test_what_is_missing_is_said_before_anything_is_read(tmp_path: Path) -> None:
    """With the nearest name as the hint; exit code 3."""
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(DataError) as error:
        open_documents([str(tmp_path / "corpus.txt"), str(tmp_path / "copus.txt")])
    assert error.value.message.endswith("copus.txt: no such file or folder")
    assert error.value.hint == f"did you mean {tmp_path / 'corpus.txt'}?"
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match="no such file"):
        open_documents([str(tmp_path / "none" / "a.txt")])


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_without_text_is_refused(tmp_path: Path, name: str, content: str) -> None:
    """Named itself, or alone in its folder or pattern."""
    (tmp_path / name).write_text(content)
    for source in (tmp_path / name, tmp_path, tmp_path / "a.*"):
        with pytest.raises(DataError, match=r"no text in it|none of its files holds any text"):
            _texts(source)


def test_a_folder_without_text_says_what_is_supported(tmp_path: Path) -> None:
    """Also when it holds other files."""
    (tmp_path / "a.py").write_text("text")
    with pytest.raises(DataError, match=r"this version reads \.txt, \.md, \.jsonl"):
        open_documents([str(tmp_path)])


def test_no_source_and_no_such_builtin_are_refused() -> None:
    """An empty list is not the built-in corpus: the caller decides."""
    with pytest.raises(DataError, match="no text is named"):
        open_documents([])
    with pytest.raises(DataError, match="no such built-in corpus"):
        open_documents(["builtin:instruction"])
    for read in (lambda: open_documents([""]), lambda: open_texts("")):
        with pytest.raises(DataError, match="one of the names is empty"):
            read()


def test_texts_are_read_by_one_name(tmp_path: Path) -> None:
    """A file, a folder, a pattern or the built-in corpus; from a column, up to a number of documents."""
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"body": "two", "text": "2"}\n{"body": "three", "text": "3"}\n')
    assert list(open_texts(str(tmp_path / "a.txt"))) == ["one"]
    assert list(open_texts(str(tmp_path), text_column="body")) == ["one", "two", "three"]
    assert list(open_texts(str(tmp_path / "*"), max_samples=2)) == ["one", "2"]
    assert list(open_texts("builtin", max_samples=1)) == [next(open_documents(["builtin"])).text]


def test_at_most_so_many_documents_are_read(tmp_path: Path) -> None:
    """Over all sources in order; what comes after them may be broken."""
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": ""}\n{"text": "three"}\nbroken\n')
    names = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    for number in (1, 2, 3):
        reading = Reading(max_samples=number)
        assert [d.text for d in open_documents(names, reading)] == ["one", "two", "three"][:number]
        assert list(open_blocks(names, reading)) == ["one", "two", "three"][:number]
    with pytest.raises(DataError, match=":4:1: not JSON"):
        list(open_documents(names, Reading(max_samples=4)))
    for number in (0, -1):
        with pytest.raises(UsageError, match=f"max_samples {number}: nothing would be read"):
            Reading(max_samples=number)


def test_a_line_may_not_be_longer_than_fits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stated limit, named with the line; the last line needs no end."""
    from llmt.text import readers

    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 20_000_000)
    path = tmp_path / "a.jsonl"
    line = '{"text": "' + "a" * 19_999_986 + '"}'
    path.write_text(line + "\n" + line + "\n")
    assert [len(text) for _, text in _texts(path)] == [19_999_986] * 2
    path.write_text('{"text": "a"}\n' + line + "    ")
    with pytest.raises(DataError, match=":2: a line of more than 20 MB"):
        _texts(path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"])
def test_a_file_that_may_not_be_read_is_a_storage_error(tmp_path: Path, name: str) -> None:
    """Exit code 6, with what the system said."""
    path = tmp_path / name
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(StorageError, match="cannot be read"):
        _texts(path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_may_not_be_searched_is_not_passed_over(tmp_path: Path) -> None:
    """Its text would be missing without a word."""
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(StorageError, match="closed: cannot be read"):
            open_documents([str(tmp_path)])
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_the_builtin_corpora_can_be_mixed_with_files(tmp_path: Path) -> None:
    """Sources are read in the order given."""
    (tmp_path / "a.txt").write_text("mine")
    found = list(open_documents([str(tmp_path / "a.txt"), "builtin"]))
    assert found[0].text == "mine"
    assert found[1].source.startswith("builtin:topic/")


def test_documents_are_read_as_they_are_taken(tmp_path: Path) -> None:
    """A row is there before a later one is found broken."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 3 + "broken")
    documents = open_documents([str(tmp_path / "a.jsonl")])
    assert [next(documents).text for _ in range(3)] == ["one"] * 3
    with pytest.raises(DataError, match=":4:1: not JSON"):
        next(documents)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """Same content under other names and times: equal. One byte at the same size and time: different."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.txt").write_text("text")
        (tmp_path / folder / "z.md").write_text("more")
    first = fingerprint_sources([str(tmp_path / "one")])
    assert fingerprint_sources([str(tmp_path / "two")]) == first
    changed = tmp_path / "two" / "z.md"
    times = (changed.stat().st_atime_ns, changed.stat().st_mtime_ns)
    changed.write_text("mire")
    os.utime(changed, ns=times)
    assert fingerprint_sources([str(tmp_path / "two")]) != first


def test_where_one_file_ends_and_the_next_begins_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """The same bytes in other files, or read in another way, are another corpus."""
    contents = {
        "a": {"1.txt": "ab", "2.txt": "c"},
        "b": {"1.txt": "a", "2.txt": "bc"},
        "c": {"1.jsonl": "ab", "2.txt": "c"},
    }
    for folder, files in contents.items():
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)
    prints = {fingerprint_sources([str(tmp_path / folder)]) for folder in contents}
    assert len(prints | {fingerprint_sources(["builtin"]), fingerprint_sources(["builtin:instructions"])}) == 5


def test_folders_are_followed_through_links_once(tmp_path: Path) -> None:
    """What lies behind a link is read; one that leads back is not walked again."""
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "elsewhere" / "b.txt").write_text("two")
    try:
        (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in", target_is_directory=True)
    except OSError:
        pytest.skip("links may not be made here")
    assert [document.text for document in open_documents([str(tmp_path / "in")])] == ["one", "two"]
