"""Documents to ids with a mask."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from llmt.data.encode import DocumentEncoder, Encoded
from llmt.data.pieces import is_seamless
from llmt.errors import DataError
from llmt.text.documents import Document, Message
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.fast import PretrainedTokenizer
from llmt.tokenizers.files import TokenizerParts
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import train_tokenizer

WORDS = ["Question: why is the answer so? Answer: it is so because of this.\n"] * 50


def _refuse(conversations: Sequence[Sequence[Message]]) -> list[DataError]:
    return [DataError("no") for _ in conversations]


def _encode(tokenizer: Tokenizer, *documents: Document, train_on_prompt: bool = False) -> list[Encoded]:
    with DocumentEncoder(tokenizer, 1, train_on_prompt=train_on_prompt, render=_refuse) as encoder:
        (batch,) = encoder.encode([[(document, None) for document in documents]])
    found = [encoded for _, _, encoded in batch]
    assert all(isinstance(encoded, Encoded) for encoded in found)
    return [encoded for encoded in found if isinstance(encoded, Encoded)]


def _sentence_piece() -> Tokenizer:
    """A tokenizer that puts a space before every text, as SentencePiece does."""
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("</s>", 0.0)], 0, byte_fallback=False))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(WORDS, trainer)
    return PretrainedTokenizer.from_parts(TokenizerParts(backend, {"eos_token": "</s>", "unk_token": "<unk>"}))


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_prompt_has_the_ids_that_it_has_when_it_is_used(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    """Read and not learnt; the completion is learnt, and both decode to the text."""
    (encoded,) = _encode(tokenizer, Document(prompt + answer, "", prompt=len(prompt)))
    read, learnt = encoded.pieces
    assert (read.ids, learnt.ids) == (tokenizer.encode(prompt), tokenizer.encode(answer))
    assert (read.learnt, learnt.learnt) == (False, True)
    assert encoded.text_bytes == len((prompt + answer).encode())
    assert encoded.trained_bytes == len(answer.encode())
    (everything,) = _encode(tokenizer, Document(prompt + answer, "", prompt=len(prompt)), train_on_prompt=True)
    assert [piece.learnt for piece in everything.pieces] == [True, True]
    assert everything.trained_bytes == everything.text_bytes


@pytest.mark.parametrize("algo", ["bpe", "wordpiece", "unigram", "byte"])
def test_our_tokenizers_are_seamless(algo: str) -> None:
    """A text in two reads as a text in one, at a border of words."""
    tokenizer = train_tokenizer(algo, WORDS, vocab_size=600)
    assert is_seamless(tokenizer)


def test_a_tokenizer_that_begins_each_text_with_a_space_gets_both_in_one() -> None:
    """The ids are those of the whole text, divided where the answer begins."""
    tokenizer = _sentence_piece()
    assert not is_seamless(tokenizer)
    for prompt, answer in (("Question: why?\nAnswer:", " so it is"), ("why", " this"), ("", "so"), ("so", "")):
        text = prompt + answer
        (encoded,) = _encode(tokenizer, Document(text, "", prompt=len(prompt)))
        assert [token for piece in encoded.pieces for token in piece.ids] == tokenizer.encode(text)
        read = [token for piece in encoded.pieces if not piece.learnt for token in piece.ids]
        starts = [start for start, _ in tokenizer.offsets(text)]
        assert len(read) == sum(start < len(prompt) for start in starts)


def test_texts_and_prompts_in_one_batch(tokenizer: Tokenizer) -> None:
    """Each gets its own ids."""
    documents = [Document("plain text", ""), Document("ask answer", "", prompt=3), Document("", ""), Document("x", "")]
    found = _encode(tokenizer, *documents)
    for document, encoded in zip(documents, found, strict=True):
        assert tokenizer.decode([token for piece in encoded.pieces for token in piece.ids]) == document.text
        assert encoded.end_learnt


def test_the_gpt2_tokenizer_reads_prompts_alike() -> None:
    """A real vocabulary: at the usual borders the ids of both parts are those of the whole."""
    data = os.environ.get("TEST_DATA_DIR")
    if not data:
        pytest.skip("TEST_DATA_DIR is not set: no real tokenizer")
    tokenizer = load_tokenizer(Path(data) / "gpt2-tokenizer")
    assert is_seamless(tokenizer)
    prompt, answer = "Question: How much is it?\nAnswer:", " It is 5 dollars."
    (encoded,) = _encode(tokenizer, Document(prompt + answer, "", prompt=len(prompt)))
    assert [token for piece in encoded.pieces for token in piece.ids] == tokenizer.encode(prompt + answer)
