"""Where each document goes."""

from pathlib import Path
from typing import Any

import pytest

from llmt.config.data import DataConfig
from llmt.data.assign import Assignment, Place, training_texts
from llmt.text.documents import Document
from llmt.text.reading import Reading
from llmt.text.sources import PART_CHARACTERS

LONG = "four words of text\n" * 40_000


def _config(folder: Path, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [str(folder)], "validation_split": 0} | options)


def _whole(assignment: Assignment) -> dict[str, list[tuple[str, Place]]]:
    """The documents with their parts put together, by the name of their file."""
    found: dict[str, list[tuple[str, Place]]] = {}
    parts: list[str] = []
    for document, place in assignment.documents():
        parts.append(document.text)
        if not document.more:
            found.setdefault(Path(document.source).name, []).append(("".join(parts), place))
            parts = []
    assert not parts
    return found


def _write(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_a_long_document_is_left_out_as_a_short_one(tmp_path: Path) -> None:
    """Where it was read before, or is held out: all of its parts, and none of one that only begins like it."""
    assert len(LONG) > 2 * PART_CHARACTERS
    folder = _write(tmp_path / "in", a=LONG, b="short", c=LONG, d=f"{LONG}more", e="short")
    repeated = Assignment(_config(folder, deduplicate=True), Reading())
    found = _whole(repeated)
    assert {name: texts for name, ((texts, _),) in found.items()} == {
        "a.txt": LONG, "b.txt": "short", "d.txt": f"{LONG}more"
    }  # fmt: skip
    assert repeated.deduplicated == 2
    held = _write(tmp_path / "held", x=LONG)
    apart = Assignment(_config(folder, validation_sources=[str(held)]), Reading())
    found = _whole(apart)
    assert list(found) == ["x.txt", "b.txt", "d.txt", "e.txt"]
    assert found["x.txt"] == [(LONG, Place("validation", 0))]
    assert (apart.overlap.count, apart.overlap_kept, apart.overlap_share) == (2, 0, 1.0)


def test_what_is_too_long_to_be_held_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was given away before its end was seen."""
    monkeypatch.setattr("llmt.data.assign.HELD_CHARACTERS", 300_000)
    folder = _write(tmp_path / "in", a=LONG, b=LONG, c="short")
    held = _write(tmp_path / "held", x=LONG, y="short", z="other")
    assignment = Assignment(_config(folder, validation_sources=[str(held)], deduplicate=True), Reading())
    found = _whole(assignment)
    assert [text for name in "ab" for text, _ in found[f"{name}.txt"]] == [LONG, LONG]
    assert "c.txt" not in found
    assert (assignment.overlap.count, assignment.overlap_kept) == (3, 2)
    assert assignment.overlap_share == pytest.approx(2 / 3)


def test_each_source_is_split_for_itself(tmp_path: Path) -> None:
    """The end of the one text of the first, some documents of the second; the parts of a mixture are numbered."""
    one = _write(tmp_path / "one", a="".join(f"line {number:03d}\n" for number in range(100)))
    many = _write(tmp_path / "many", **{f"n{number:03d}": f"text {number}" for number in range(200)})
    sources = [str(one), str(many)]
    for mixture in ([], [1, 2]):
        assignment = Assignment(DataConfig.model_validate({"sources": sources, "mixture": mixture}), Reading())
        found = _whole(assignment)
        (head, first), (tail, last) = found.pop("a.txt")
        assert (len(head), len(tail)) == (810, 90)
        assert (first, last) == (Place("train", 0), Place("validation", 0))
        places = [place for ((_, place),) in found.values()]
        assert set(places) == {Place("train", 1 if mixture else 0), Place("validation", 0)}
        assert 2 <= places.count(Place("validation", 0)) <= 30
        assert [note.split(" of ")[0] for note in assignment.notes] == ["5 %", "the last 10 %"]


def test_every_document_is_watched_once(tmp_path: Path) -> None:
    """Before it is cut or left out, held-out ones first."""
    folder = _write(tmp_path / "in", a="same", b="same", c="other")
    held = _write(tmp_path / "held", x="other")
    seen: list[Document] = []
    config = _config(folder, validation_sources=[str(held)], deduplicate=True)
    list(Assignment(config, Reading(), seen.append).documents())
    assert [Path(document.source).name for document in seen] == ["x.txt", "a.txt", "b.txt", "c.txt"]


def test_a_tokenizer_is_trained_on_what_is_trained_on(tmp_path: Path) -> None:
    """Nothing that is held out is among it."""
    folder = _write(tmp_path / "in", a="".join(f"line {number:03d}\n" for number in range(100)))
    texts = list(training_texts(_config(folder, validation_split=None), Reading()))
    assert "".join(texts).splitlines() == [f"line {number:03d}" for number in range(90)]
