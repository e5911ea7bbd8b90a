"""Token ids on the disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.data.shards import ShardSet, ShardWriter, open_shards, token_dtype
from llmt.errors import DataError, ModelFileError


def _write(folder: Path, documents: list[list[int]], vocab_size: int, eos: int = 0) -> ShardSet:
    with ShardWriter(folder, "train", vocab_size=vocab_size, eos_token_id=eos) as writer:
        for ids in documents:
            writer.add([(ids, True)], text_bytes=10)
        writer.finish()
    return open_shards(folder, "train")


@given(st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=10), st.sampled_from([100, 65_536, 65_537]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocab_size: int
) -> None:
    """One end-of-text id before the first document and one after each; offsets find every document."""
    shards = _write(tmp_path_factory.mktemp("shards"), documents, vocab_size, eos=7)
    assert shards.tokens.tolist() == [7, *(token for ids in documents for token in [*ids, 7])]
    assert [shards.document(number).tolist() for number in range(shards.documents)] == [[*d, 7] for d in documents]
    assert shards.targets == len(shards.tokens) - 1
    assert (shards.text_bytes, shards.vocab_size, shards.eos_token_id) == (10 * len(documents), vocab_size, 7)


def test_two_bytes_are_used_while_they_suffice(tmp_path: Path) -> None:
    """The highest id of each type survives; the file is as large as its ids."""
    assert (token_dtype(65_536), token_dtype(65_537)) == ("<u2", "<u4")
    for vocab_size, width in ((65_536, 2), (65_537, 4)):
        folder = tmp_path / str(width)
        folder.mkdir()
        assert _write(folder, [[vocab_size - 1]], vocab_size).tokens.tolist() == [0, vocab_size - 1, 0]
        assert (folder / "train.tokens.bin").stat().st_size == 3 * width


@pytest.mark.parametrize("wrong", [16, -1, 65_536, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, wrong: int) -> None:
    """It never wraps around to another id."""
    with pytest.raises(DataError, match=f"id {wrong} in document 2: the vocabulary has 16 ids"):
        _write(tmp_path, [[1, 2], [3, wrong]], vocab_size=16)


def test_shards_cannot_be_written_to(tmp_path: Path) -> None:
    """The map is read-only."""
    shards = _write(tmp_path, [[1]], vocab_size=16)
    with pytest.raises(ValueError, match="read-only"):
        shards.tokens[0] = 5


@pytest.mark.parametrize("name", ["train.tokens.bin", "train.documents.bin", "train.json"])
def test_shards_of_another_length_are_refused(tmp_path: Path, name: str) -> None:
    """Missing, cut and lengthened files are found before they are mapped."""
    _write(tmp_path, [[1, 2, 3]], vocab_size=16)
    path = tmp_path / name
    content = path.read_bytes()
    for damaged in (content[:-2], content + b"00"):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            open_shards(tmp_path, "train")
    path.unlink()
    with pytest.raises(ModelFileError):
        open_shards(tmp_path, "train")


def test_shards_of_another_format_are_refused(tmp_path: Path) -> None:
    """A later llmt may write something else under the same names."""
    _write(tmp_path, [[1, 2, 3]], vocab_size=16)
    meta = json.loads((tmp_path / "train.json").read_text())
    for change in ({"format": 1}, {"tokens": "5"}, {"tokens": None}, {"eos": True}):
        (tmp_path / "train.json").write_text(json.dumps(meta | change))
        with pytest.raises(ModelFileError, match="not shards of format 2"):
            open_shards(tmp_path, "train")


def test_the_bytes_on_the_disk_are_little_endian(tmp_path: Path) -> None:
    """Shards can be carried to any machine."""
    _write(tmp_path, [[258]], vocab_size=1000)
    assert (tmp_path / "train.tokens.bin").read_bytes() == b"\x00\x00\x02\x01\x00\x00"
    offsets = np.frombuffer((tmp_path / "train.documents.bin").read_bytes(), "<u8")
    assert offsets.tolist() == [1, 3]


@pytest.mark.parametrize("first", [3, 70_000])
def test_a_mask_may_begin_late(tmp_path: Path, first: int) -> None:
    """After much that is learnt: the first id is no target all the same."""
    with ShardWriter(tmp_path, "train", vocab_size=16, eos_token_id=0) as writer:
        writer.add([([1] * first, True)], text_bytes=1)
        writer.add([([2] * 5, False), ([3] * 4, True)], text_bytes=1)
        writer.finish()
    shards = open_shards(tmp_path, "train")
    assert shards.mask is not None
    assert shards.mask.tolist() == [0] + [1] * (first + 1) + [0] * 5 + [1] * 5
