"""Files of every kind to documents: rows, parts, what is passed over."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from llmt.errors import DataError, UsageError
from llmt.text.blocks import split_pieces
from llmt.text.documents import Document
from llmt.text.reading import Reading
from llmt.text.sources import PART_CHARACTERS, fingerprint_sources, open_blocks, open_documents, open_each

Pack = Callable[[str, bytes], bytes]
Run = Callable[..., str]

ROWS = [{"question": "Why?\r\n", "answer": 'so, "it"\tis'}, {"question": "四\u2028", "answer": "a\nb"}]
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _separated(delimiter: str) -> bytes:
    target = io.StringIO(newline="")
    writer = csv.DictWriter(target, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return target.getvalue().encode()


def _table(suffix: str, rows: list[Any] = ROWS) -> bytes:
    target = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    if suffix == ".parquet":
        parquet.write_table(table, target)
    else:
        make = pyarrow.ipc.new_stream if suffix == ".arrow" else pyarrow.ipc.new_file
        with make(target, table.schema) as writer:
            writer.write_table(table)
    return target.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    ".jsonl": lambda: _lines(ROWS),
    ".ndjson": lambda: _lines(ROWS),
    ".json": lambda: json.dumps(ROWS).encode(),
    ".csv": lambda: _separated(","),
    ".tsv": lambda: _separated("\t"),
    ".parquet": lambda: _table(".parquet"),
    ".arrow": lambda: _table(".arrow"),
    ".feather": lambda: _table(".feather"),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", KINDS)
def test_rows_of_every_kind_are_the_values_that_were_written(
    tmp_path: Path, pack: Pack, suffix: str, packing: str
) -> None:
    """Named itself or found in its folder, packed or not, as documents and as blocks."""
    content = KINDS[suffix]()
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(pack(packing, content) if packing else content)
    said: list[Any] = []
    for source in (path, tmp_path):
        found = list(open_documents([str(source)], Reading(on_format=lambda *what: said.append(what))))
        assert [(d.text[: d.prompt], d.text[d.prompt :]) for d in found] == [
            (f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in ROWS
        ]
        assert all(d.source.startswith(str(path)) for d in found)
        assert list(open_blocks([str(source)])) == [d.text for d in found]
    assert said == [(str(path), "instruction", ("question", "answer"))] * 2


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_conversations_come_out_of_records_and_tables(tmp_path: Path, suffix: str) -> None:
    """Lists of objects inside a row."""
    rows = [{"id": 1, "messages": TURNS}, {"id": 2, "messages": [*TURNS, *TURNS]}]
    content = {".jsonl": _lines(rows), ".json": json.dumps(rows).encode()}.get(suffix) or _table(suffix, rows)
    (tmp_path / f"a{suffix}").write_bytes(content)
    found = list(open_documents([str(tmp_path)]))
    assert [[m._asdict() for m in d.messages] for d in found] == [row["messages"] for row in rows]


@pytest.mark.parametrize("suffix", [s for s in KINDS if s not in (".jsonl", ".ndjson", ".json")])
def test_a_wrong_column_of_a_table_lists_those_that_exist(tmp_path: Path, suffix: str) -> None:
    """Once, for the whole file, whatever may be skipped."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(KINDS[suffix]())
    with pytest.raises(DataError) as error:
        list(open_documents([str(path)], Reading("body", skip_bad=9)))
    assert error.value.message == f"{path}: no column 'body'; it has question, answer"


def test_a_cut_off_table_is_named(tmp_path: Path) -> None:
    """Half of a parquet file gives no document."""
    (tmp_path / "a.parquet").write_bytes(KINDS[".parquet"]()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: "):
        list(open_documents([str(tmp_path / "a.parquet")]))


def test_bad_rows_are_passed_over_up_to_a_number(tmp_path: Path) -> None:
    """Over all sources together; one more is the error it would have been, and the flag is named."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "1"}\nbroken\n{"text": 5}\n{"text": "2"}\n')
    (tmp_path / "b.jsonl").write_bytes(_lines([{"text": "3"}, {"body": "x"}, {"text": "4"}]))
    bad: list[str] = []
    found = open_documents([str(tmp_path)], Reading(skip_bad=3, on_bad=lambda error: bad.append(error.message)))
    assert [document.text for document in found] == ["1", "2", "3", "4"]
    places = [f"{tmp_path / name}" for name in ("a.jsonl:2", "a.jsonl:3", "b.jsonl:2")]
    assert [message[: len(place)] for message, place in zip_longest(bad, places)] == places
    for number, kept in ((0, ["1"]), (1, ["1"]), (2, ["1", "2", "3"])):
        bad.clear()
        documents = open_documents(
            [str(tmp_path)], Reading(skip_bad=number, on_bad=lambda error: bad.append(error.message))
        )
        assert [document.text for document in islice(documents, len(kept))] == kept
        with pytest.raises(DataError) as error:
            next(documents)
        assert error.value.message.startswith(places[number])
        assert len(bad) == number
        assert ("--skip-bad" in error.value.hint) == (number > 0)


def test_a_file_of_which_every_row_is_bad_holds_no_text(tmp_path: Path) -> None:
    """Passing over everything is not reading something."""
    (tmp_path / "a.jsonl").write_text("broken\n" * 3)
    with pytest.raises(DataError, match="no text in it"):
        list(open_documents([str(tmp_path / "a.jsonl")], Reading(skip_bad=5)))


def test_bad_conversations_are_rows_like_others(tmp_path: Path) -> None:
    """Passed over and counted, by file and line."""
    (tmp_path / "a.jsonl").write_bytes(_lines([{"messages": TURNS[:1]}, {"messages": TURNS}, {"messages": []}]))
    bad: list[DataError] = []
    found = list(open_documents([str(tmp_path)], Reading(skip_bad=2, on_bad=bad.append)))
    assert len(found) == 1
    assert [error.message.split(": ")[0] for error in bad] == [f"{tmp_path / 'a.jsonl'}:{line}" for line in (1, 3)]


def test_what_holds_no_text_is_reported(tmp_path: Path) -> None:
    """Blank files, lines, rows and parts, each with its place, in order."""
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "1"}\n\n{"text": " "}\n')
    (tmp_path / "c.txt").write_text("one--\n--two--")
    empty: list[str] = []
    reading = Reading(split_on="--", on_empty=empty.append)
    assert [d.text for d in open_documents([str(tmp_path)], reading)] == ["1", "one", "two"]
    places = ["a.txt:1", "b.jsonl:2", "b.jsonl:3", "c.txt:1", "c.txt:2"]
    assert empty == [str(tmp_path / place) for place in places]


def test_a_format_is_said_when_it_differs(tmp_path: Path) -> None:
    """Once for each file whose rows are not those of the file before, and anew for each name."""
    (tmp_path / "in").mkdir()
    for name, row in (("1", ROWS[0]), ("2", ROWS[1]), ("3", {"text": "t"}), ("4", {"messages": TURNS})):
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(_lines([row, row]))
    said: list[Any] = []
    reading = Reading(on_format=lambda name, kind, columns: said.append((Path(name).name, kind, columns)))
    list(open_documents([str(tmp_path / "in"), str(tmp_path / "in" / "4.jsonl")], reading))
    talk = ("4.jsonl", "conversation", ("messages",))
    assert said == [
        ("1.jsonl", "instruction", ("question", "answer")), ("3.jsonl", "text", ("text",)), talk, talk
    ]  # fmt: skip


@given(st.lists(st.text("ab-\n", max_size=8), max_size=6), st.text("-\na", min_size=1, max_size=3))
def test_a_text_is_divided_as_the_language_divides_it(pieces: list[str], separator: str) -> None:
    """As `str.split`, whatever the pieces; each part with the number of the line in which it begins."""
    text = "".join(pieces)
    found = [(line, "".join(part)) for line, part in split_pieces(pieces, separator)]
    expected, place = [], 0
    for part in text.split(separator):
        expected.append((text.count("\n", 0, place) + 1, part))
        place += len(part) + len(separator)
    assert found == expected
    assert [line for line, _ in split_pieces(pieces, separator)] == [line for line, _ in expected]


def test_a_text_file_can_hold_many_documents(tmp_path: Path) -> None:
    """Each between two separators, by file and line; rows are not divided, nor counted otherwise."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n\nthree\n\n\n\nfour\n")
    (tmp_path / "b.jsonl").write_bytes(_lines([{"text": "a\n\nb"}]))
    found = [(Path(d.source).name, d.text) for d in open_documents([str(tmp_path)], Reading(split_on="\n\n"))]
    assert found == [("a.txt:1", "one\ntwo"), ("a.txt:4", "three"), ("a.txt:8", "four\n"), ("b.jsonl:1", "a\n\nb")]
    assert len(list(open_documents([str(tmp_path)], Reading(split_on="\n\n", max_samples=2)))) == 2
    with pytest.raises(UsageError, match="split_on"):
        Reading(split_on="")
    with pytest.raises(UsageError, match="skip_bad -1"):
        Reading(skip_bad=-1)


LONG = "four words of text\n" * 500_000


def _whole(documents: Iterator[Document]) -> list[tuple[str, list[str]]]:
    """The documents with their parts put together again."""
    found: list[tuple[str, list[str]]] = []
    goes_on = False
    for document in documents:
        if not goes_on:
            found.append((document.source, []))
        found[-1][1].append(document.text)
        assert document.source == found[-1][0]
        goes_on = document.more
    assert not goes_on
    return found


@pytest.mark.parametrize("before", ["", " \n" * 2_500_000])
def test_a_long_text_comes_in_parts(tmp_path: Path, before: str) -> None:
    """Of 250,000 characters at most, all but the last with `more`; joined they are the file, and count as one."""
    (tmp_path / "a.txt").write_text(before + LONG)
    (tmp_path / "b.txt").write_text("last")
    source, parts = _whole(open_documents([str(tmp_path)]))[0]
    assert source == str(tmp_path / "a.txt")
    assert "".join(parts) == before + LONG
    assert len(parts) >= 30
    assert max(len(part.lstrip()) for part in parts) <= PART_CHARACTERS
    assert _whole(open_documents([str(tmp_path)], Reading(max_samples=1))) == [(source, parts)]
    assert len(_whole(open_documents([str(tmp_path)], Reading(max_samples=2)))) == 2
    (tmp_path / "a.txt").write_text(f"{LONG}--{LONG}")
    halves = _whole(open_documents([str(tmp_path / "a.txt")], Reading(split_on="--")))
    assert ["".join(parts) for _, parts in halves] == [LONG, LONG]
    assert [source.rpartition(":")[2] for source, _ in halves] == ["1", "500001"]


def test_each_name_has_its_documents(tmp_path: Path) -> None:
    """They can be taken in turn; documents and bad rows are counted over all of them."""
    (tmp_path / "a.jsonl").write_bytes(_lines([{"text": f"a{number}"} for number in range(5)]))
    (tmp_path / "b.jsonl").write_bytes(b"broken\n" + _lines([{"text": f"b{number}"} for number in range(5)]))
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]

    def in_turn(**choices: Any) -> list[str]:
        each = dict(open_each(names, Reading(skip_bad=1, **choices)))
        assert list(each) == [0, 1, 2]
        taken = [d for turn in zip_longest(*each.values()) for d in turn if d is not None]
        return [document.text for document in taken]

    assert in_turn() == [f"{letter}{number}" for number in range(5) for letter in "aba"]
    for most in (1, 4, 7):
        assert in_turn(max_samples=most) == in_turn()[:most]
    with pytest.raises(DataError, match=r"b\.jsonl:1:1: not JSON"):
        list(dict(open_each(names))[1])
    with pytest.raises(DataError, match="no such file"):
        open_each([*names, str(tmp_path / "c")])


def test_the_way_rows_are_read_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """The same bytes under another suffix are another corpus."""
    for suffix in (".csv", ".tsv", ".json", ".txt"):
        (tmp_path / f"a{suffix}").write_text("text")
    assert len({fingerprint_sources([str(path)]) for path in tmp_path.iterdir()}) == 4


_MEMORY = r"""
import hashlib, re, sys
from pathlib import Path
from llmt.text.reading import Reading
from llmt.text.sources import open_documents
digest, parts, size = hashlib.sha256(), 0, 0
for document in open_documents([sys.argv[1]], Reading(split_on=sys.argv[2] or None)):
    digest.update(document.text.encode())
    parts += 1
print(digest.hexdigest(), parts, re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("split_on", ["", "never"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path, run_python: Run, split_on: str) -> None:
    """70 MB give the bytes of the file, in parts, in the memory of 14 MB; holding them would take 56 MB more."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc")
    line = b"the quick brown fox jumps over the lazy dog\n"
    peaks = []
    for size in (14_000_000, 70_000_000):
        path = tmp_path / "a.txt"
        content = line * (size // len(line))
        path.write_bytes(content)
        digest, parts, peak = run_python(_MEMORY, str(path), split_on).split()
        assert digest == hashlib.sha256(content).hexdigest()
        assert int(parts) > len(content) // PART_CHARACTERS
        peaks.append(int(peak))
    assert peaks[1] < 1.1 * peaks[0]
