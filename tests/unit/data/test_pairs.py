"""Pairs of a chosen and a rejected answer, from rows to sequences."""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmt.config.data import DataConfig
from llmt.data.assign import Assignment
from llmt.data.batch import IGNORED
from llmt.data.loader import evaluation_batches
from llmt.data.packing import pack
from llmt.data.prepare import prepare_shards
from llmt.data.ready import ReadyData, ready_data
from llmt.data.shards import ShardSet, ShardWriter, open_shards
from llmt.errors import DataError
from llmt.text.reading import Reading
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import train_tokenizer

EOS = 0
ROWS = [{"prompt": f"What is {n}?", "chosen": " yes" * (n % 7 + 1), "rejected": " no" * (n % 5 + 1)} for n in range(60)]


def _ready(folder: Path, tokenizer: Tokenizer, rows: Sequence[Any], **options: Any) -> ReadyData:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig.model_validate({"sources": [str(path)], "block_size": 128, "validation_split": 0.2} | options)
    prepared = prepare_shards(config, tokenizer, folder / "cache" / "shards")
    return ready_data(config, prepared, folder / "cache" / "packed")


def _shards(folder: Path, documents: list[tuple[int, int]]) -> ShardSet:
    """Documents of so many ids that are read, and so many that are learnt."""
    with ShardWriter(folder, "train", vocab_size=10_000, eos_token_id=EOS) as writer:
        for number, (read, learnt) in enumerate(documents):
            pieces = [([number + 1] * read, False), ([number + 1] * learnt, True)]
            writer.add(pieces, 1, trained_bytes=1, end_learnt=learnt > 0, place=f"file:{number // 2 + 1}")
        writer.finish()
    return open_shards(folder, "train")


documents = st.tuples(st.integers(0, 9), st.integers(0, 9))


@given(
    sizes=st.lists(st.tuples(documents, documents), min_size=1, max_size=12),
    size=st.integers(2, 40),
    truncation=st.sampled_from(["truncate", "drop"]),
    share=st.booleans(),
)
def test_pairs_stay_together_and_every_token_is_counted(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[tuple[tuple[int, int], tuple[int, int]]],
    size: int,
    truncation: Literal["truncate", "drop"],
    share: bool,
) -> None:
    """Each pair stands in one sequence, chosen before rejected, as much of it as fits; else it is counted."""
    shards = _shards(tmp_path_factory.mktemp("shards"), [document for pair in sizes for document in pair])
    packed = pack(shards, size, truncation, share=share, pairs=True)
    expected: Counter[tuple[tuple[int, int], ...]] = Counter()
    counts: Counter[str] = Counter()
    start = 0
    for pair in sizes:
        lengths = [read + learnt + 1 for read, learnt in pair]
        starts, start = [start, start + lengths[0]], start + sum(lengths)
        kept = list(lengths)
        if sum(lengths) > size:
            if truncation == "drop":
                counts["dropped"] += sum(lengths)
                continue
            kept = [min(n, max(size - other, size // 2)) for n, other in zip(lengths, reversed(lengths), strict=True)]
            counts["truncated"] += sum(lengths) - sum(kept)
        assert sum(kept) <= size
        learnt = [max(n - read, 0) if own else 0 for n, (read, own) in zip(kept, pair, strict=True)]
        if 0 in learnt:
            counts["dropped"] += sum(kept)
            counts["all_masked"] += 1
            continue
        counts["trained"] += sum(learnt)
        counts["masked"] += sum(kept) - sum(learnt)
        expected[tuple(zip(starts, kept, strict=True))] += 1
    found: Counter[tuple[tuple[int, int], ...]] = Counter()
    for first, last in zip(packed.edges[:-1].tolist(), packed.edges[1:].tolist(), strict=True):
        parts = [tuple(part) for part in packed.pieces[first:last].tolist()]
        assert sum(length for _, length in parts) <= size
        assert len(parts) == 2 or (share and len(parts) % 2 == 0)
        found.update(zip(parts[::2], parts[1::2], strict=True))
    assert found == expected
    audit = packed.audit
    assert audit.total == shards.targets
    assert {**dict.fromkeys(("trained", "masked", "dropped", "truncated", "all_masked"), 0), **counts} == {
        "trained": audit.trained, "masked": audit.masked, "dropped": audit.dropped, "truncated": audit.truncated,
        "all_masked": audit.all_masked.count,
    }  # fmt: skip


@pytest.mark.parametrize("truncation", ["split", "error"])
def test_a_pair_that_is_too_long_stops_where_it_cannot_be_cut(
    tmp_path: Path, truncation: Literal["split", "error"]
) -> None:
    """It is named, and so is what may be done; where all fit, neither word means anything."""
    shards = _shards(tmp_path, [(1, 2), (1, 2), (1, 5), (1, 7)])
    assert len(pack(shards, 16, truncation, share=True, pairs=True).edges) == 3
    with pytest.raises(DataError, match=r"file:2: a pair of 16 tokens, more than data\.block_size 15") as caught:
        pack(shards, 15, truncation, share=True, pairs=True)
    assert "truncate or drop" in caught.value.hint


@pytest.mark.parametrize("packing", ["auto", "none"])
def test_batches_hold_whole_pairs(tmp_path: Path, tokenizer: Tokenizer, packing: str) -> None:
    """Documents of one row follow each other, the chosen first, with the prompt read and the answer learnt."""
    data = _ready(tmp_path, tokenizer, ROWS, packing=packing)
    assert data.pairs
    assert data.packing == ("best_fit" if packing == "auto" else "none")
    assert data.train.masks
    assert data.validation is not None
    assert data.validation.pairs
    found = []
    for sequences in (data.train.parts[0], data.validation):
        for batch in evaluation_batches(sequences, 3):
            assert batch.position_ids is not None
            for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
                starts = [*np.flatnonzero(positions.numpy() == 0).tolist(), len(ids)]
                texts = []
                for start, end in pairwise(starts):
                    learnt = labels[start:end] != IGNORED
                    if learnt.any():
                        read = ids[start + 1 : end][~learnt[: end - start - 1]].tolist()
                        texts.append((tokenizer.decode(read), tokenizer.decode(labels[start:end][learnt].tolist())))
                assert len(texts) == 2 or (len(texts) % 2 == 0 and packing == "auto")
                found += list(zip(texts[::2], texts[1::2], strict=True))
    expected = [((row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])) for row in ROWS]
    assert sorted(found) == sorted(expected)


def test_a_row_counts_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """In documents, held-out ones and repeated ones; what repeats is decided by all of its text."""
    data = _ready(tmp_path, tokenizer, [*ROWS, ROWS[3]])
    text = data.audit.text
    assert (text.documents, text.pairs, text.supervised, text.conversations) == (61, 61, 61, 0)
    assert text.duplicates.count == 1
    assert data.validation is not None
    assert text.held_out_documents == data.validation.shards.documents / 2
    assert data.validation.shards.documents + data.prepared.train[0].documents == 2 * 61
    assert text.formats == {str(tmp_path / "a.jsonl"): "preference (prompt, chosen, rejected)"}
    again = _ready(tmp_path, tokenizer, [*ROWS, ROWS[3]], deduplicate=True)
    assert again.audit.text.deduplicated == 1
    assert again.prepared.train[0].documents + again.validation.shards.documents == 120  # type: ignore[union-attr]


def _pairs_of(prompts: int, each: int, *, turns: bool) -> list[dict[str, Any]]:
    """Several pairs of each prompt, texts or turns."""
    rows: list[dict[str, Any]] = []
    for prompt in range(prompts):
        for answer in range(each):
            texts = {"chosen": f" yes {answer}", "rejected": f" no {answer}"}
            if turns:
                asked = {"role": "user", "content": f"What is {prompt}?"}
                rows.append(
                    {part: [asked, {"role": "assistant", "content": text}] for part, text in texts.items()}
                )  # fmt: skip
            else:
                rows.append({"prompt": f"What is {prompt}?", **texts})
    return rows


def _asked(config: DataConfig) -> dict[str, list[str]]:
    """What is asked on each side, once for each pair."""
    found: dict[str, list[str]] = {"train": [], "validation": []}
    for document, place in Assignment(config, Reading.of(config)).documents():
        asked = re.findall(r"What is \d+\?", document.text)
        assert len(asked) == 1
        found[place.split] += asked
    return found


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("prompts", [3, 100])
def test_all_pairs_of_a_prompt_fall_on_one_side(tmp_path: Path, prompts: int, *, turns: bool) -> None:
    """Of many rows as of few, and where the held-out ones stand in a file of their own."""
    rows, path = _pairs_of(prompts, 4, turns=turns), tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig.model_validate({"sources": [str(path)], "validation_split": 0.2})
    found = _asked(config)
    assert sum(map(len, found.values())) == len(rows)
    assert min(map(len, found.values())) > 0
    assert not set(found["train"]) & set(found["validation"])
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(json.dumps(row) for row in rows[1::8]))
    config = DataConfig.model_validate({"sources": [str(path)], "validation_sources": [str(held)]})
    assignment = Assignment(config, Reading.of(config))
    places = [place.split for _, place in assignment.documents()]
    asked = len(rows[1::8])
    assert (places.count("validation"), places.count("train")) == (asked, len(rows) - 4 * asked)
    assert (assignment.overlap.count, assignment.overlap_share) == (4 * asked, 1.0)


def test_few_pairs_of_one_prompt_are_divided(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """There is nothing else to be held out; of many it is an error. Pairs without a prompt go by their text."""
    rows = _pairs_of(1, 10, turns=False)
    assert _ready(tmp_path, tokenizer, rows, validation_split=None).audit.text.held_out_documents == 1
    with pytest.raises(DataError, match="all pairs answer what held-out ones do") as caught:
        _ready(tmp_path, tokenizer, _pairs_of(1, 30, turns=False))
    assert "data.validation_split=0" in caught.value.hint
    bare = [{"chosen": f"yes{n}", "rejected": f"no{n}"} for n in range(400)]
    held = _ready(tmp_path, tokenizer, bare, validation_split=None).audit.text
    assert 5 <= held.held_out_documents <= 40


def test_few_pairs_are_held_out_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of fewer than twenty rows the last ones, both sides of each."""
    data = _ready(tmp_path, tokenizer, ROWS[:10], validation_split=None)
    assert data.audit.text.held_out_documents == 1
    assert data.validation is not None
    assert data.validation.shards.place(0).endswith(":10")
    assert data.validation.shards.documents == 2


def test_both_sides_of_a_pair_are_passed_over(tmp_path: Path) -> None:
    """A side that cannot be written takes the other one along; what is left is whole pairs, and reconciles."""
    train_tokenizer("bpe", ["hello you"] * 4, vocab_size=280).save_pretrained(tmp_path / "t")
    tokenizer = load_tokenizer(tmp_path / "t")
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for message in messages %}{% if 'bad' in message['content'] %}{{ raise_exception('no') }}{% endif %}"
        "{{ message['role'] + ':' + message['content'] + '\\n' }}{% endfor %}"
    )

    def row(chosen: str, rejected: str) -> dict[str, Any]:
        asked = {"role": "user", "content": "hi"}
        return {
            part: [asked, {"role": "assistant", "content": text}]
            for part, text in (("chosen", chosen), ("rejected", rejected))
        }

    rows = [row(f"a{n}", f"b{n}") for n in range(30)]
    rows[3], rows[11] = row("a", "bad"), row("bad", "b")
    data = _ready(tmp_path, tokenizer, rows, chat_template=str(template), skip_bad=2, validation_split=0)
    text = data.audit.text
    assert (text.documents, text.conversations, text.bad.count) == (30, 30, 2)
    shards = data.prepared.train[0]
    assert [shards.place(n).rpartition(":")[2] for n in range(shards.documents)] == [
        str(n + 1) for n in range(30) for _ in range(2) if n not in (3, 11)
    ]
    with pytest.raises(DataError, match=r"a\.jsonl:12: .*refuses"):
        _ready(tmp_path, tokenizer, rows, chat_template=str(template), skip_bad=1, validation_split=0)


def test_more_pairs_than_a_batch_holds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The shards are those of the sides one after the other, whatever the pieces of work are."""
    lengths = random.Random(0)
    rows = [
        {"prompt": f"row {n}", "chosen": " word" * lengths.randint(1, 9), "rejected": " other" * lengths.randint(1, 9)}
        for n in range(700)
    ]
    rows.insert(100, {"prompt": "long", "chosen": " text" * 150_000, "rejected": " none"})
    shards = _ready(tmp_path, tokenizer, rows, validation_split=0, truncation="truncate").prepared.train[0]
    end = tokenizer.eos_token_id
    expected = [end]
    for row in rows:
        for part in ("chosen", "rejected"):
            expected += [*tokenizer.encode(row["prompt"]), *tokenizer.encode(row[part]), end]
    assert shards.tokens.tolist() == expected


def test_only_the_last_turns_are_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What the assistant said before the answers is read, in ChatML and where a template marks nothing itself."""
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    before = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    asked = {"role": "user", "content": "three"}
    rows = [
        {"prompt": [*before, asked], "chosen": [{"role": "assistant", "content": f"good {n}"}],
         "rejected": [{"role": "assistant", "content": f"bad {n}"}]} for n in range(3)
    ]  # fmt: skip
    for options in ({}, {"chat_template": str(template)}):
        shards = _ready(tmp_path, tokenizer, rows, validation_split=0, block_size=512, **options).prepared.train[0]
        assert shards.mask is not None
        for number in range(shards.documents):
            start, end = (int(place) for place in shards.offsets[number : number + 2])
            learnt = shards.tokens[start:end][np.asarray(shards.mask[start:end]) == 1].tolist()
            said = tokenizer.decode(learnt, skip_special_tokens=True)
            assert said.replace("<|im_end|>", "").strip() == f"{('good', 'bad')[number % 2]} {number // 2}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"packing": "blocks"}, "packing blocks"),
        ({"document_mask": False}, "document_mask"),
        ({"train_on_prompt": True}, "train_on_prompt"),
        ({"block_size": 4}, "a pair of"),
        ({"block_size": 4, "truncation": "truncate"}, "nothing in it is learnt"),
    ],
)
def test_what_pairs_cannot_be(tmp_path: Path, tokenizer: Tokenizer, options: dict[str, Any], words: str) -> None:
    """Settings that would part them, or mix what they are, are refused with what to do."""
    rows = [{**row, "prompt": f"a longer prompt than fits {number}"} for number, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=words) as caught:
        _ready(tmp_path, tokenizer, rows, **options)
    assert caught.value.hint


def test_pairs_and_other_documents_do_not_mix(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """In one file or several, it is an error that says how many are pairs."""
    other = tmp_path / "b.txt"
    other.write_text("plain text")
    with pytest.raises(DataError, match="60 of 61 documents are pairs"):
        _ready(tmp_path, tokenizer, ROWS, sources=[str(tmp_path / "a.jsonl"), str(other)])


def test_a_plan_of_pairs_comes_from_the_cache(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The same sequences, with the same account."""
    first, again = (_ready(tmp_path, tokenizer, ROWS) for _ in range(2))
    assert again.prepared.reused
    assert again.audit == first.audit
    batches = [list(evaluation_batches(data.train.parts[0], 4)) for data in (first, again)]
    assert all(one.input_ids.equal(other.input_ids) for one, other in zip(*batches, strict=True))
