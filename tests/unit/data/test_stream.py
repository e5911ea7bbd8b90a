"""Batches out of sources as they are read."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from llmt.config.data import DataConfig
from llmt.data.batch import IGNORED, Batch
from llmt.data.loader import evaluation_batches
from llmt.data.prepare import prepare_shards
from llmt.data.sequences import BlockSequences
from llmt.data.stream import Position, StreamLoader
from llmt.errors import DataError, MismatchError
from llmt.text.reading import Reading
from llmt.text.sources import open_stream
from llmt.tokenizers.base import Tokenizer

SIZE = 16


def _rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n}? 狐", "answer": f"{n} " * (n % 5 + 1)} for n in range(first, first + count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several kinds, some with rows that hold no text, and one that is read in parts."""
    path = tmp_path / "text"
    path.mkdir()
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, _rows(0, 40))) + "\n\n")
    (path / "b.txt").write_text("one text\nof some lines\n" * 30)
    parquet.write_table(pyarrow.Table.from_pylist(_rows(40, 50)), path / "c.parquet", row_group_size=7)
    with pyarrow.ipc.new_file(path / "d.arrow", pyarrow.schema({"text": pyarrow.string()})) as writer:
        for number in range(5):
            texts = [f"row {number}", "  ", f"another {number}"]
            writer.write_table(pyarrow.table({"text": texts}))
    (path / "e.csv").write_text("text\n" + "".join(f"line {number}\n" for number in range(20)))
    (path / "f.json").write_text(json.dumps([{"text": f"value {number}"} for number in range(20)]))
    (path / "g.txt").write_text("  \n")
    return path


def _config(folder: Path, **options: Any) -> DataConfig:
    known = {"sources": [str(folder)], "block_size": SIZE, "validation_split": 0, "streaming": True}
    return DataConfig.model_validate(known | options)


def _lines(batches: Iterator[Batch], count: int) -> list[tuple[list[int], ...]]:
    found: list[tuple[list[int], ...]] = []
    for batch in batches:
        assert batch.tokens == int((batch.labels != IGNORED).sum())
        tensors = [batch.input_ids, batch.labels]
        tensors += [batch.position_ids] if batch.position_ids is not None else []
        found += list(zip(*(tensor.tolist() for tensor in tensors), strict=True))
        if len(found) >= count:
            return found[:count]
    raise AssertionError("a stream has no end")


def test_a_stream_is_the_row_of_all_documents(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    """Block for block what shards of the same sources give, masks and positions too, and then it begins again."""
    prepared = prepare_shards(_config(folder, streaming=False), tokenizer, tmp_path / "cache").train[0]
    for mask in (False, True):
        blocks = BlockSequences(prepared, SIZE, document_mask=mask)
        expected = _lines(evaluation_batches(blocks, 4), blocks.count)
        loader = StreamLoader(_config(folder, document_mask=mask), tokenizer, 3)
        found = _lines(loader.batches(), 2 * blocks.count)
        assert found[: blocks.count - 1] == expected[:-1]
        labels = [token for row in found for token in row[1]]
        ids = [token for row in expected for token in row[1]][: prepared.targets]
        assert labels == (ids * 3)[: len(labels)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("mask", [False, True])
def test_a_stream_goes_on_from_every_place(folder: Path, tokenizer: Tokenizer, num_workers: int, mask: bool) -> None:
    """After each of the batches of two passes the rest is the same, from the position alone."""
    config = _config(folder, document_mask=mask, train_on_prompt=mask)
    whole = StreamLoader(config, tokenizer, 4)
    batches = whole.batches()
    seen, positions = [], []
    while whole.epoch(1) < 2:
        seen.append(next(batches))
        positions.append(whole.position())
    batches.close()  # type: ignore[attr-defined]
    assert len(seen) > 60
    for place in range(0, len(seen) - 2, 5):
        again = StreamLoader(config, tokenizer, 4, num_workers)
        again.go_to(json.loads(json.dumps(positions[place])))
        rest = again.batches(4 * (place + 1))
        for expected in islice(seen, place + 1, place + 3):
            batch = next(rest)
            assert torch.equal(batch.input_ids, expected.input_ids)
            assert torch.equal(batch.labels, expected.labels)
            if mask:
                assert batch.position_ids is not None
                assert expected.position_ids is not None
                assert torch.equal(batch.position_ids, expected.position_ids)
        assert again.position() == positions[place + 2]
        rest.close()  # type: ignore[attr-defined]


def test_files_before_the_position_are_not_opened(folder: Path) -> None:
    """A file that is broken stops a stream from the start, not one that is past it."""
    places = [(file, row) for file, row, _ in open_stream([str(folder)], Reading())]
    assert places == sorted(set(places))
    (folder / "a.jsonl").write_text("broken")
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        list(open_stream([str(folder)], Reading()))
    rest = [(file, row) for file, row, _ in open_stream([str(folder)], Reading(), 1, 0)]
    assert rest == [place for place in places if place[0] > 0]


@pytest.mark.parametrize("name", ["a.jsonl", "b.txt", "c.parquet", "d.arrow", "e.csv", "f.json"])
def test_rows_are_numbered_alike_from_every_place(folder: Path, name: str) -> None:
    """What comes from row n on is what came with numbers from n on."""
    source = [str(folder / name)]
    whole = list(open_stream(source, Reading(split_on="\n")))
    assert len(whole) >= 10
    for start in (0, 1, 7, 8, whole[-1][1], whole[-1][1] + 1):
        assert list(open_stream(source, Reading(split_on="\n"), 0, start)) == [row for row in whole if row[1] >= start]


def test_the_first_row_says_what_the_rows_are(tmp_path: Path) -> None:
    """Also for who begins at a later one, which might be read otherwise."""
    rows = [{"text": "one"}, {"text": "two", "prompt": "P", "completion": "C"}, {"text": "three"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = list(open_stream([str(tmp_path)], Reading()))
    assert [document.text for _, _, document in whole] == ["one", "two", "three"]
    assert list(open_stream([str(tmp_path)], Reading(), 0, 1)) == whole[1:]


def test_a_long_text_goes_on_in_its_middle(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Parts of one document: no end-of-text id between them, wherever the stream was left."""
    (tmp_path / "a.txt").write_text("four words of text\n" * 450_000)
    config = _config(tmp_path / "a.txt", block_size=1024)
    whole = StreamLoader(config, tokenizer, 64)
    batches = whole.batches()
    seen, positions = [], []
    while whole.position()["row"] < 2:
        seen.append(next(batches))
        positions.append(whole.position())
    assert not any((batch.labels == tokenizer.eos_token_id).any() for batch in seen)
    crossing = next(place for place, found in enumerate(positions) if found["row"] == 1)
    for place in (crossing - 1, crossing):
        again = StreamLoader(config, tokenizer, 64)
        again.go_to(positions[place])
        assert torch.equal(next(again.batches()).input_ids, seen[place + 1].input_ids)


def test_a_position_of_other_text_is_refused(folder: Path, tokenizer: Tokenizer) -> None:
    """As far as can be seen: fewer tokens in the row than were read of it; or no position at all."""
    loader = StreamLoader(_config(folder), tokenizer, 4)
    loader.go_to(Position(0, 0, 3, 10_000).values())
    with pytest.raises(MismatchError, match="row 3 of file 0 has"):
        next(loader.batches())
    for wrong in (None, {"row": 1, "line": 2}):
        with pytest.raises(MismatchError):
            loader.go_to(wrong)


def test_sources_without_text_are_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Not an endless search."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(" ")
    with pytest.raises(DataError, match="no text"):
        next(StreamLoader(_config(tmp_path / "in"), tokenizer, 4).batches())
