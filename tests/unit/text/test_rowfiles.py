"""Files of records and tables: what is read against what wrote them, and every way in which they can be wrong."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from llmt.errors import DataError
from llmt.text.reading import Reading
from llmt.text.rowfiles import read_rows
from llmt.text.rows import Row

Pack = Callable[[str, bytes], bytes]
Run = Callable[..., str]

PIECE = 1 << 20


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _rows(path: Path, **reading: Any) -> list[Row]:
    return list(read_rows(path, Reading(**reading)))


def _values(path: Path, **reading: Any) -> list[Any]:
    rows = _rows(path, **reading)
    assert all(row.error is None for row in rows)
    return [dict(row.values) for row in rows]


def _refused(path: Path, **reading: Any) -> str:
    with pytest.raises(DataError) as error:
        _rows(path, **reading)
    assert error.value.hint
    return error.value.message


def _bad(path: Path) -> dict[str, str]:
    return {row.place: row.error.message for row in _rows(path) if row.error is not None}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=8,
)
json_rows = st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=4), max_size=8)


@given(rows=json_rows, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), listed=st.booleans())
def test_json_gives_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii_only: bool, listed: bool
) -> None:
    """A list, or objects that follow each other, written in any way.

    An empty object alone on the first line would say that each line holds one.
    """
    if not listed:
        rows = [{**row, "": True} for row in rows]
    written = (
        json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
        if listed
        else "\n".join(json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows)
    )
    assert _values(_write(tmp_path_factory.getbasetemp(), "a.json", written)) == rows


def test_json_values_cross_the_pieces_that_are_read(tmp_path: Path) -> None:
    """Values of up to three pieces, cut anywhere: in strings, escapes, numbers and words."""
    chance = random.Random(0)
    rows = [
        {"text": chance.choice('xé四\\"\n\U0001f600') * chance.randrange(1, 400_000), "n": 10**15 + number, "b": True}
        for number in range(25)
    ]
    for name, content in (
        ("list.json", json.dumps(rows, indent=1)),
        ("raw.json", json.dumps(rows, ensure_ascii=False)),
        ("follow.json", "\n".join(json.dumps(row, indent=1) for row in rows)),
        ("lines.json", "\n".join(json.dumps(row) for row in rows)),
    ):
        assert len(content) > 2 * PIECE
        assert _values(_write(tmp_path, name, content)) == rows


def test_json_errors_name_the_line(tmp_path: Path) -> None:
    """Where it is not JSON the file ends there; where a row is none it is that row."""
    good = '[\n{"text": "a"},\n'
    for rest, said in (
        ('{"text" "b"}\n]', "a.json:3: not JSON: Expecting ':' delimiter"),
        ('{"text": "b"}', "a.json:3: the list does not end"),
        ('{"text": "b"', "a.json:3: not JSON"),
        ('{"text": "b', "a.json:3: not JSON: Unterminated string"),
        ('{"text": "b"}]\n{}', "a.json:4: more text after the list"),
        ('{"text": "b"}\n\n{}]', "a.json:5: not JSON: a comma belongs"),
        ('{"text": "b"},\n]', "a.json:4: not JSON: Expecting value"),
        ('{"text": "b\x01"}]', "a.json:3: not JSON: Invalid control character"),
    ):
        path = _write(tmp_path, "a.json", good + rest)
        assert _refused(path).startswith(str(tmp_path / said)), rest
    mixed = _write(tmp_path, "b.json", '[1, {"text": "a"}, "x", {"text": "\\ud83d"}, {"m": [{"c": "\\udc00"}]}]')
    assert list(_bad(mixed)) == [f"{mixed}: row {number}" for number in (1, 3, 4, 5)]
    assert "half a surrogate pair" in _bad(mixed)[f"{mixed}: row 5"]
    assert _rows(mixed, encoding_errors="replace")[4].values == {"m": [{"c": "\ufffd"}]}
    assert "Expecting" in _refused(_write(tmp_path, "c.json", "not json at all"))
    assert _rows(_write(tmp_path, "d.json", " \n")) == []
    assert _rows(_write(tmp_path, "e.json", "[ ]")) == []


@pytest.mark.parametrize("depth", [300, 900, 990, 2_000, 100_000])
def test_deep_nesting_is_a_bad_row_at_worst(tmp_path: Path, depth: int) -> None:
    """Never an error of the interpreter."""
    row = '{"text": "a", "x": ' + "[" * depth + "]" * depth + "}"
    for name, content in (("a.jsonl", row), ("b.json", f"[{row}]")):
        try:
            (found,) = _rows(_write(tmp_path, name, content))
        except DataError:
            continue
        assert found.error is not None or found.values["text"] == "a"


csv_characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


@given(
    rows=st.lists(st.lists(st.text(csv_characters), min_size=2, max_size=2)),
    delimiter=st.sampled_from([",", "\t"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_separated_values_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str, end: str
) -> None:
    """With quotes, delimiters and line ends inside of fields, for all three kinds of line ends."""
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    name = "a.csv" if delimiter == "," else "a.tsv"
    path = _write(tmp_path_factory.getbasetemp(), name, target.getvalue())
    assert _values(path) == [{"a": a, "b": b} for a, b in rows]


def test_separated_values_cross_the_pieces_that_are_read(tmp_path: Path) -> None:
    """CR LF cut in two, and fields of more than a piece."""
    rows = [{"text": "x" * size, "n": str(size)} for size in (PIECE - 12, 5, 3 * PIECE, 0, PIECE)]
    body = "".join(f"{row['text']},{row['n']}\r\n" for row in rows)
    for shift in range(4):
        path = _write(tmp_path, "a.csv", f"text,n\r\n{'y' * shift},1\r\n" + body)
        assert _values(path)[1:] == rows


def test_separated_values_that_are_wrong_name_the_line(tmp_path: Path) -> None:
    """Rows after them are read; blank lines are told."""
    path = _write(tmp_path, "a.csv", 'text,n\na,1\n\nb\n"c\nc",2\n"d"d,3\ne,4,5\nf,6\n"g')
    empty: list[str] = []
    found = _rows(path, on_empty=empty.append)
    assert [row.values["n"] for row in found if row.error is None] == ["1", "2", "6"]
    assert empty == [f"{path}:3"]
    assert _bad(path) == {
        f"{path}:4": f"{path}:4: 1 fields where 2 belong",
        f"{path}:7": f"{path}:7: not a row: ',' expected after '\"'",
        f"{path}:8": f"{path}:8: 3 fields where 2 belong",
        f"{path}:10": f"{path}:10: a quote begins here and never ends",
    }
    assert "two columns are named 'a'" in _refused(_write(tmp_path, "b.csv", "a,b,a\n1,2,3\n"))
    assert _rows(_write(tmp_path, "c.csv", "")) == []
    assert _rows(_write(tmp_path, "d.csv", "text\n")) == []
    assert "byte 0x00 at offset 6" in _refused(_write(tmp_path, "e.csv", b"text\na\0"))


def _table(rows: list[Any], kind: str = "parquet", **options: Any) -> bytes:
    target = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        parquet.write_table(table, target, **options)
    else:
        make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with make(target, table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
    return target.getvalue()


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_tables_give_every_row_in_order(tmp_path: Path, pack: Pack, kind: str, packing: str) -> None:
    """Over batches and row groups, and only the columns that are chosen."""
    rows = [{"id": number, "text": f"é{number}", "more": [number] * 3} for number in range(1_000)]
    content = _table(rows, kind, **({"row_group_size": 300} if kind == "parquet" else {}))
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    path = _write(tmp_path, f"a{suffix}{packing}", pack(packing, content) if packing else content)
    assert _values(path) == rows
    chosen = list(read_rows(path, Reading(), lambda names: [name for name in names if name == "text"]))
    assert [row.values for row in chosen] == [{"text": row["text"]} for row in rows]
    assert [chosen[place].place for place in (0, 299, 999)] == [f"{path}: row {number}" for number in (1, 300, 1_000)]


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_damaged_tables_are_named(tmp_path: Path, kind: str) -> None:
    """Cut anywhere it is an error that names the file, never fewer rows."""
    rows = [{"text": f"{number} " * 50} for number in range(2_000)]
    content = _table(rows, kind)
    suffix = ".parquet" if kind == "parquet" else ".arrow"
    for size in (0, 3, len(content) // 3, len(content) // 2, len(content) - 20):
        path = _write(tmp_path, f"a{suffix}", content[:size])
        assert _refused(path).startswith(f"{path}: damaged, or no {suffix[1:]} file"), size
    assert "feather of the first version" in _refused(_write(tmp_path, "a.feather", b"FEA1" + b"\0" * 40))


def test_bytes_of_a_table_that_are_no_text_are_one_bad_row(tmp_path: Path) -> None:
    """The others of its batch are read."""
    column = pyarrow.array([b"good", b"bad \xff", b"good too"]).cast(pyarrow.string(), safe=False)
    if column.type != pyarrow.string():
        pytest.fail("pyarrow checks bytes now; make the column otherwise")
    target = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": column}), target)
    path = _write(tmp_path, "a.parquet", target.getvalue())
    assert [row.values.get("text") for row in _rows(path)] == ["good", None, "good too"]
    assert _bad(path) == {f"{path}: row 2": f"{path}: row 2: column 'text' holds byte 0xff, not UTF-8"}


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Which of them is meant cannot be told."""
    target = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"]), target)
    assert "two columns are named 'text'" in _refused(_write(tmp_path, "a.parquet", target.getvalue()))


_MEMORY = r"""
import re, sys
from pathlib import Path
from llmt.text.reading import Reading
from llmt.text.rowfiles import read_rows
count = sum(1 for row in read_rows(Path(sys.argv[1]), Reading()) if row.error is None)
print(count, re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet", ".arrow", ".parquet.zst"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(
    tmp_path: Path, run_python: Run, pack: Pack, suffix: str
) -> None:
    """Ten times the rows in the same memory; holding them would take hundreds of MB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc")
    peaks = []
    for count in (12_000, 120_000):
        chance = random.Random(0)
        rows = [{"id": str(number), "text": f"{chance.random():.17f} " * 20} for number in range(count)]
        if suffix == ".json":
            content = json.dumps(rows).encode()
        elif suffix == ".csv":
            content = ("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows)).encode()
        else:
            kind = "stream" if suffix == ".arrow" else "parquet"
            content = _table(rows, kind, **({"row_group_size": 6_000} if kind == "parquet" else {}))
        path = _write(tmp_path, f"a{suffix}", pack(".zst", content) if suffix.endswith(".zst") else content)
        found, peak = run_python(_MEMORY, str(path)).split()
        assert int(found) == count
        peaks.append(int(peak))
    assert peaks[1] < 1.25 * peaks[0]
