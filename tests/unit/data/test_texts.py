"""Texts in memory as blocks of token ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llmt import HFTokenizerWrapper, LanguageModelingDataset
from llmt.data.batch import IGNORED
from llmt.data.loader import BatchLoader, evaluation_batches
from llmt.data.mixture import TrainingSet
from llmt.data.texts import TextData
from llmt.errors import DataError, LlmtError, MismatchError, ModelFileError, UsageError
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.train import train_tokenizer

TEXTS = [f"The {animal} number {n} sleeps." for n in range(7) for animal in ("cat", "dog", "owl")]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer("byte", ())


@pytest.mark.parametrize("count", [1, 20, 21, 512, 513, 1100])
def test_the_row_of_ids(tokenizer: Any, count: int) -> None:
    """An end, then each text and its end, whatever the batches that they are encoded in; offsets tell them apart."""
    texts = [TEXTS[number % len(TEXTS)] for number in range(count)]
    shards = LanguageModelingDataset(iter(texts), tokenizer, 16).sequences.shards
    end = tokenizer.eos_token_id
    assert shards.tokens.tolist() == [end, *(i for text in texts for i in (*tokenizer.encode(text), end))]
    assert shards.documents == count
    for number in range(count):
        assert shards.document(number).tolist() == [*tokenizer.encode(texts[number]), end]
    assert shards.text_bytes == sum(len(text.encode()) for text in texts)


def test_items_are_what_is_trained_on(tokenizer: Any) -> None:
    """`blocks[n]` are the rows of the loader's batches, with positions where documents are kept apart."""
    for masks in (False, True):
        blocks = LanguageModelingDataset(TEXTS, tokenizer, 16, document_mask=masks)
        (batch,) = evaluation_batches(blocks.sequences, len(blocks))
        assert len(blocks) == len(batch.input_ids)
        for number, item in enumerate(blocks):
            assert torch.equal(item["input_ids"], batch.input_ids[number])
            assert torch.equal(item["labels"], batch.labels[number])
            assert ("position_ids" in item) == masks
            if batch.position_ids is not None:
                assert torch.equal(item["position_ids"], batch.position_ids[number])
        trained = BatchLoader(TrainingSet((blocks.sequences,)), len(blocks), 0).batch_at(0)
        assert sorted(trained.input_ids.tolist()) == sorted(batch.input_ids.tolist())


def test_documents_kept_apart(tokenizer: Any) -> None:
    """Positions begin anew at each end-of-text id that begins a document."""
    item = LanguageModelingDataset(["abcd", "ef"], tokenizer, 10, document_mask=True)[0]
    assert item["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert item["labels"].tolist()[8:] == [IGNORED, IGNORED]


def test_any_tokenizer(tmp_path: Path) -> None:
    """One of ours, the wrapper and a bare one of transformers make the same blocks."""
    own = train_bpe(TEXTS, 300)
    own.save_pretrained(tmp_path)
    bare = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    made = [LanguageModelingDataset(TEXTS, one, 16) for one in (own, HFTokenizerWrapper(tmp_path), bare)]
    assert len({blocks.fingerprint for blocks in made}) == 1
    assert len({blocks.tokenizer.fingerprint() for blocks in made}) == 1


def test_rows_of_a_data_set(tokenizer: Any) -> None:
    """Their column of text is read."""
    from datasets import Dataset

    expected = LanguageModelingDataset(TEXTS, tokenizer, 16).fingerprint
    rows = Dataset.from_dict({"text": TEXTS, "number": list(range(len(TEXTS)))})
    assert LanguageModelingDataset(rows, tokenizer, 16).fingerprint == expected
    named = rows.rename_column("text", "content")
    assert LanguageModelingDataset(named, tokenizer, 16, text_column="content").fingerprint == expected
    with pytest.raises(DataError, match="no column 'text', but content, number"):
        LanguageModelingDataset(named, tokenizer, 16)


def test_torch_collates_it(tokenizer: Any) -> None:
    """It is a data set to `torch.utils.data.DataLoader` too."""
    blocks = LanguageModelingDataset(TEXTS, tokenizer, 16)
    batches = list(torch.utils.data.DataLoader(blocks, batch_size=4))
    assert batches[0]["input_ids"].shape == batches[0]["labels"].shape == (4, 16)
    assert sum(len(batch["labels"]) for batch in batches) == len(blocks)


def test_numbers_of_blocks(tokenizer: Any) -> None:
    """Those of a list, NumPy's too, and nothing beyond."""
    blocks = LanguageModelingDataset(TEXTS, tokenizer, np.int64(16))
    last = len(blocks) - 1
    for number in (-1, last, np.int64(last)):
        assert torch.equal(blocks[number]["labels"], blocks[last]["labels"])
    for number in (len(blocks), -len(blocks) - 1):
        with pytest.raises(IndexError, match=f"block {number} of {len(blocks)}"):
            blocks[number]


@pytest.mark.parametrize(
    ("texts", "size", "error", "says"),
    [
        ([], 16, DataError, "no text in any"),
        (["", ""], 16, DataError, "no text in any"),
        (["a", None], 16, DataError, "number 1 is of type NoneType"),
        ([{"text": 3}], 16, DataError, "number 0 is of type int"),
        ([b"bytes"], 16, DataError, "number 0 is of type bytes"),
        ("one text", 16, UsageError, "one text, where several"),
        (b"bytes", 16, UsageError, "one text, where several"),
        ({"text": "one"}, 16, UsageError, "one row, where several"),
        (None, 16, UsageError, "a NoneType holds no texts"),
        (["a"], 0, UsageError, "block_size 0"),
        (["a"], 1, UsageError, "block_size 1"),
        (["a"], -8, UsageError, "block_size -8"),
        (["a"], 16.5, UsageError, "block_size 16.5"),
        (["a"], "16", UsageError, "block_size '16'"),
        (["a"], None, UsageError, "block_size None"),
    ],
)
def test_what_cannot_be(tokenizer: Any, texts: Any, size: Any, error: type[LlmtError], says: str) -> None:
    """Each is refused with what to do."""
    with pytest.raises(error, match=says) as raised:
        LanguageModelingDataset(texts, tokenizer, size)
    assert raised.value.hint


def test_tokenizers_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is none, one whose ids are more than it says, one without an end."""
    with pytest.raises(UsageError, match="a str is no tokenizer"):
        LanguageModelingDataset(TEXTS, "gpt2")
    own = train_bpe(TEXTS, 300)
    monkeypatch.setattr(type(own), "encode_batch", lambda self, texts: [[1, len(self)] for _ in texts])
    with pytest.raises(MismatchError, match=f"the id {len(own)}, and says that it has 0 to {len(own) - 1}"):
        LanguageModelingDataset(TEXTS, own)
    monkeypatch.setattr(type(own), "special_tokens", {})
    with pytest.raises(ModelFileError, match="no end-of-text token"):
        LanguageModelingDataset(TEXTS, own)


def test_the_fingerprint_is_of_what_is_learnt(tokenizer: Any) -> None:
    """Another order, length, mask or border between texts is another one; the same texts are the same."""
    first = LanguageModelingDataset(["ab", "c"], tokenizer, 16).fingerprint
    assert LanguageModelingDataset(iter(["ab", "c"]), tokenizer, 16).fingerprint == first
    others = [
        LanguageModelingDataset(["c", "ab"], tokenizer, 16),
        LanguageModelingDataset(["a", "bc"], tokenizer, 16),
        LanguageModelingDataset(["ab", "c"], tokenizer, 8),
        LanguageModelingDataset(["ab", "c"], tokenizer, 16, document_mask=True),
    ]
    assert len({first, *(other.fingerprint for other in others)}) == 5


def test_the_fingerprint_of_a_run_counts_what_is_held_out(tokenizer: Any) -> None:
    """Losses on other held-out texts are those of another run; with none it is that of what is trained on."""
    blocks, *held_out = (LanguageModelingDataset(texts, tokenizer, 16) for texts in (TEXTS, TEXTS[:2], TEXTS[:3]))
    found = [TextData(blocks, each).fingerprint for each in (None, blocks, *held_out)]
    assert len(set(found)) == 4
    assert found[0] == blocks.fingerprint
    assert TextData(blocks, LanguageModelingDataset(TEXTS[:2], tokenizer, 16)).fingerprint == found[2]
    assert TextData(held_out[0], blocks).fingerprint not in found


def test_texts_in_the_place_of_a_corpus(tokenizer: Any) -> None:
    """What a run asks of its data."""
    blocks = LanguageModelingDataset(TEXTS, tokenizer, 16)
    data = TextData(blocks, LanguageModelingDataset(TEXTS[:2], tokenizer, 16))
    assert data.samples == len(blocks)
    assert data.tokens_per_sample * len(blocks) == pytest.approx(blocks.sequences.trained)
    assert data.masks is False
    assert data.validation is not None
    assert data.validation.text_bytes == sum(len(text) for text in TEXTS[:2])
    assert data.describe().startswith("21 texts in memory")
    assert data.audit_values()["documents"] == 21
    assert next(data.loader(4, 0, 0, False).batches()).input_ids.shape == (4, 16)
