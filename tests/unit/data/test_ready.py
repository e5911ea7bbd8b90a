"""Shards to the sequences of a run, and the account of their tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmt.config.data import DataConfig
from llmt.data.audit import DataAudit, PackingAudit, TextAudit
from llmt.data.inspection import show_held_out, show_samples
from llmt.data.prepare import prepare_shards
from llmt.data.ready import ReadyData, ready_data
from llmt.errors import DataError, LlmtError
from llmt.tokenizers.base import Tokenizer


def _ready(folder: Path, tokenizer: Tokenizer, rows: list[dict[str, Any]], **options: Any) -> ReadyData:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig.model_validate({"sources": [str(path)], "block_size": 32, "validation_split": 0.2} | options)
    prepared = prepare_shards(config, tokenizer, folder / "cache" / "shards")
    return ready_data(config, prepared, folder / "cache" / "packed")


TEXTS = [{"text": f"text {number}: " + "words " * (number % 9)} for number in range(60)]
ASKED = [{"question": f"What is {number}?", "answer": f"{number}. " * (number % 12 + 1)} for number in range(60)]


@pytest.mark.parametrize("rows", [TEXTS, ASKED])
@pytest.mark.parametrize("packing", ["auto", "blocks", "best_fit", "none"])
@pytest.mark.parametrize("mixture", [[], [1]])
def test_every_token_is_accounted_for(
    tmp_path: Path, tokenizer: Tokenizer, rows: list[Any], packing: str, mixture: list[int]
) -> None:
    """What is learnt, read, left out and cut off is what was read; the sequences hold just that."""
    data = _ready(tmp_path, tokenizer, rows, packing=packing, mixture=mixture)
    audit, held = data.audit, data.validation
    assert held is not None
    assert audit.packing.total == audit.text.tokens == data.prepared.train[0].targets + held.shards.targets
    assert audit.packing.trained == data.train.parts[0].trained + held.trained
    assert audit.packing.sequences == data.train.count + held.count
    if packing == "auto":
        assert data.packing == ("blocks" if rows is TEXTS else "best_fit")
    assert data.train.masks == (data.packing == "best_fit")
    assert (audit.packing.masked > 0) == (rows is ASKED)
    assert audit.values()["trained_share"] == audit.packing.trained / audit.text.tokens


def test_masks_follow_what_is_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Whatever the packing is."""
    assert _ready(tmp_path, tokenizer, TEXTS, document_mask=True).train.masks
    assert not _ready(tmp_path, tokenizer, ASKED, document_mask=False).train.masks


def test_a_plan_is_read_from_the_cache(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The same sequences; a damaged plan is made again, and every choice that decides it has its own."""
    first = _ready(tmp_path, tokenizer, ASKED)
    folders = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "packed").iterdir()}
    assert len(folders) == 2
    again = _ready(tmp_path, tokenizer, ASKED)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "packed").iterdir()} == folders
    assert (again.audit, again.notes) == (first.audit, first.notes)
    rows = [list(show_samples(data.train, tokenizer, 1, 0, 20)) for data in (first, again)]
    assert rows[0] == rows[1]
    for folder in folders:
        content = bytearray((folder / "pieces.bin").read_bytes())
        content[3] ^= 1
        (folder / "pieces.bin").unlink()
        (folder / "pieces.bin").write_bytes(content)
    assert _ready(tmp_path, tokenizer, ASKED).audit == first.audit
    assert list(show_samples(_ready(tmp_path, tokenizer, ASKED).train, tokenizer, 1, 0, 20)) == rows[0]
    for options in ({"block_size": 16}, {"packing": "none"}, {"truncation": "drop"}):
        before = len(list((tmp_path / "cache" / "packed").iterdir()))
        _ready(tmp_path, tokenizer, ASKED, **options)
        assert len(list((tmp_path / "cache" / "packed").iterdir())) == before + 2


def test_bytes_are_known_where_all_of_the_text_is_measured(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Bits for each byte of the completions; not where a part of them was cut off."""
    held = _ready(tmp_path, tokenizer, ASKED).validation
    assert held is not None
    learnt = sum(
        len(stretch.text.replace(tokenizer.special_tokens["eos_token"], "").encode())
        for row in show_held_out(held, tokenizer, 0, held.count)
        for stretch in row.stretches
        if stretch.kind == "trained"
    )
    assert held.text_bytes == learnt > 0
    cut = _ready(tmp_path, tokenizer, ASKED, truncation="truncate").validation
    assert cut is not None
    assert cut.text_bytes == 0


@pytest.mark.parametrize("packing", ["blocks", "best_fit", "none"])
def test_rows_are_shown_as_they_are_trained(tmp_path: Path, tokenizer: Tokenizer, packing: str) -> None:
    """Prompts are read, completions learnt, the rest is padding; every column is shown once."""
    data = _ready(tmp_path, tokenizer, ASKED, packing=packing)
    rows = list(show_samples(data.train, tokenizer, 3, 0, data.train.count))
    assert [(row.part, row.sequence) for row in rows] == data.train.find(3, 0, data.train.count)
    for kind, count in (("trained", data.train.parts[0].trained), ("padding", None)):
        ids = [token for row in rows for s in row.stretches if s.kind == kind for token in s.ids]
        assert count is None or len(ids) == count
    for row in rows:
        parts = data.train.parts[0].parts(row.sequence)
        starts = sum(stretch.kind == "start" for stretch in row.stretches)
        assert starts == (len(parts) if data.train.masks else 1)
        inside = sum(len(stretch.ids) for stretch in row.stretches if stretch.kind != "start")
        assert inside == 32
    text = "".join(s.text for row in rows for s in row.stretches if s.kind == "trained")
    masked = "".join(s.text for row in rows for s in row.stretches if s.kind == "masked")
    assert "Question: What is " in masked
    assert "Question" not in text
    assert all(s.source.startswith(str(tmp_path)) for row in rows for s in row.stretches if s.kind != "padding")


def test_what_cannot_be_trained_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Too little text, prompts alone, blocks that should keep documents whole."""
    with pytest.raises(DataError, match=r"\d+ tokens to train on, a block of 4096 needs 4097"):
        _ready(tmp_path, tokenizer, TEXTS, block_size=4096)
    with pytest.raises(DataError, match="truncation drop: blocks cut the row"):
        _ready(tmp_path, tokenizer, TEXTS, truncation="drop")
    with pytest.raises(DataError, match=r"a\.jsonl:3: \d+ tokens, more than data\.block_size 32"):
        _ready(tmp_path, tokenizer, ASKED, truncation="error")
    long = [{"question": "why? " * 200, "answer": "so"} for _ in range(30)]
    with pytest.raises(DataError, match="nothing in it is learnt"):
        _ready(tmp_path, tokenizer, long, truncation="truncate", validation_split=0)


def test_a_source_of_a_mixture_that_packs_to_nothing_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """It could not be drawn from as often as it should; with a weight of 0 it may be empty."""
    paths = [tmp_path / "long.jsonl", tmp_path / "short.jsonl"]
    for path, words in zip(paths, (500, 3), strict=True):
        path.write_text("\n".join(json.dumps({"question": f"{n}?", "answer": "so " * words}) for n in range(30)))
    known = {"sources": [*map(str, paths)], "block_size": 64, "truncation": "drop", "validation_split": 0}
    for mixture, is_refused in (([1, 1], True), ([1, 0], True), ([0, 1], False)):
        config = DataConfig.model_validate({**known, "mixture": mixture})
        prepared = prepare_shards(config, tokenizer, tmp_path / "cache" / "shards")
        if is_refused:
            with pytest.raises(DataError, match=r"long\.jsonl: no sequence of it is left to train on"):
                ready_data(config, prepared, tmp_path / "cache" / "packed")
        else:
            assert ready_data(config, prepared, tmp_path / "cache" / "packed").train.shares() == [0.0, 1.0]


def _audit(**numbers: Any) -> DataAudit:
    text = TextAudit(100, 0, 0, 1, 1, 1, 1_000, 5, 1, 1, 1, 9, 2, 0, 0)
    packing = PackingAudit(trained=900, masked=40, dropped=30, truncated=30)
    return DataAudit(
        replace(text, **{k: v for k, v in numbers.items() if k in TextAudit.__dataclass_fields__}),
        replace(packing, **{k: v for k, v in numbers.items() if k in PackingAudit.__dataclass_fields__}),
    )


def test_tokens_that_are_nowhere_stop_the_program() -> None:
    """One too few or one too many is a bug."""
    _audit().reconcile()
    for trained in (899, 901):
        with pytest.raises(LlmtError, match=f"1,000 tokens came in, {trained + 100:,} are"):
            _audit(trained=trained).reconcile()


@pytest.mark.parametrize(
    ("name", "numbers", "share"),
    [
        ("max_dropped", {"dropped": 30}, 0.03),
        ("max_truncated", {"truncated": 30}, 0.03),
        ("max_unknown", {"unknown_tokens": 20}, 0.02),
        ("max_overlap", {"overlap_share": 0.25}, 0.25),
    ],
)
def test_a_budget_that_is_passed_is_an_error(name: str, numbers: dict[str, Any], share: float) -> None:
    """Just at the bound it is none; the hint names a bound that would hold."""
    audit = _audit(**numbers)
    audit.check_budgets(DataConfig())
    audit.check_budgets(DataConfig.model_validate({name: share}))
    with pytest.raises(DataError) as error:
        audit.check_budgets(DataConfig.model_validate({name: share - 1e-6}))
    assert error.value.message.startswith(f"data.{name}: {100 * share:.4g} % of the ")
    allowed = float(error.value.hint.rpartition("=")[2])
    audit.check_budgets(DataConfig.model_validate({name: allowed}))
