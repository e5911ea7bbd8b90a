"""The wrapper around AutoTokenizer."""

import copy
import os
import pickle
from pathlib import Path

import pytest
from tokenizer_texts import HARD_STRINGS

from llmt.errors import HubError, MismatchError, ModelFileError, UsageError
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.huggingface import HFTokenizerWrapper
from llmt.tokenizers.load import load_tokenizer


@pytest.fixture(scope="module")
def folder(bpe: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer."""
    path = tmp_path_factory.mktemp("wrapped")
    bpe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wrapper(folder: Path) -> HFTokenizerWrapper:
    """The wrapper of that directory."""
    return HFTokenizerWrapper(folder)


def test_same_as_the_fast_tokenizer(wrapper: HFTokenizerWrapper, bpe: FastTokenizer) -> None:
    """Ids, text, pieces, offsets, roles and fingerprint equal those of the Rust tokenizer behind it."""
    assert isinstance(wrapper, Tokenizer)
    texts = [*HARD_STRINGS, "a <|endoftext|> b", "half \ud800"]
    assert wrapper.encode_batch(texts) == bpe.encode_batch(texts)
    assert wrapper.encode_batch([]) == []
    for text in texts:
        ids = wrapper.encode(text)
        assert ids == bpe.encode(text)
        assert wrapper.decode(ids) == bpe.decode(ids)
        assert wrapper.tokens(ids) == bpe.tokens(ids)
        assert wrapper.offsets(text) == bpe.offsets(text)
    assert [wrapper.token_bytes(i) for i in range(300)] == [bpe.token_bytes(i) for i in range(300)]
    for role in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id", "is_lossless"):
        assert getattr(wrapper, role) == getattr(bpe, role)
    assert wrapper.fingerprint() == bpe.fingerprint()
    stream = wrapper.decode_stream()
    assert "".join(stream.step(i) or "" for i in wrapper.encode("a😀b")) == "a😀b"
    with pytest.raises(MismatchError):
        wrapper.tokens([wrapper.vocab_size])


def test_forwards_what_it_lacks(wrapper: HFTokenizerWrapper) -> None:
    """Attributes, calls and len reach the wrapped tokenizer, an unknown attribute is an AttributeError."""
    assert len(wrapper) == len(wrapper.tokenizer) == wrapper.vocab_size
    assert wrapper("a day")["input_ids"] == wrapper.encode("a day")
    assert wrapper.padding_side == "right"
    assert wrapper.convert_tokens_to_ids("<|pad|>") == 1
    with pytest.raises(AttributeError):
        _ = wrapper.no_such_thing


def test_copies(wrapper: HFTokenizerWrapper) -> None:
    """Pickled, copied and deep-copied wrappers encode alike."""
    for twin in (pickle.loads(pickle.dumps(wrapper)), copy.copy(wrapper), copy.deepcopy(wrapper)):
        assert twin.encode("a day 😀") == wrapper.encode("a day 😀")


def test_tokenizer_can_be_replaced(folder: Path) -> None:
    """Setting `.tokenizer` and adding tokens changes what the wrapper does."""
    wrapper = HFTokenizerWrapper(folder)
    size, before = wrapper.vocab_size, wrapper.fingerprint()
    wrapper.tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    assert wrapper.vocab_size == size + 1
    assert wrapper.fingerprint() != before
    wrapper.tokenizer = HFTokenizerWrapper(folder).tokenizer
    assert wrapper.vocab_size == size


def test_saves_and_loads(wrapper: HFTokenizerWrapper, tmp_path: Path) -> None:
    """What it saves loads again, leaving no temporary files."""
    wrapper.save_pretrained(tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.name.startswith(".")]
    assert HFTokenizerWrapper(tmp_path / "saved").encode("a day") == wrapper.encode("a day")


def test_older_files_go_through_transformers(tmp_path: Path) -> None:
    """GPT-2's vocab.json and merges.txt load through transformers; saved again, through the library alone."""
    data = os.environ.get("TEST_DATA_DIR")
    if data is None:
        pytest.skip("TEST_DATA_DIR is not set: no vocabulary of GPT-2")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((Path(data) / "gpt2-tokenizer" / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    wrapper = load_tokenizer(tmp_path)
    assert isinstance(wrapper, HFTokenizerWrapper)
    assert wrapper.encode("Hello world") == [15496, 995]
    assert (wrapper.vocab_size, wrapper.eos_token_id, wrapper.is_lossless) == (50257, 50256, True)
    wrapper.save_pretrained(tmp_path / "saved")
    fast = load_tokenizer(tmp_path / "saved")
    assert isinstance(fast, FastTokenizer)
    assert fast.fingerprint() == wrapper.fingerprint()
    assert fast.encode_batch(HARD_STRINGS) == wrapper.encode_batch(HARD_STRINGS)
    assert fast.eos_token_id == 50256


def test_what_is_not_there(tmp_path: Path) -> None:
    """A path that does not exist never reaches the hub; an empty directory and a bad one are refused."""
    for name in ("./nothing", "/nothing/at/all", "a/b/c", tmp_path / "nothing"):
        with pytest.raises(ModelFileError, match="no such tokenizer directory"):
            HFTokenizerWrapper(name)
    with pytest.raises(ModelFileError, match="no tokenizer that transformers can read"):
        HFTokenizerWrapper(tmp_path)


def test_hub_out_of_reach() -> None:
    """A name that only the hub knows, without the hub, is a HubError."""
    with pytest.raises(HubError, match="no-such-owner/no-such-name"):
        HFTokenizerWrapper("no-such-owner/no-such-name", local_files_only=True)


def test_remote_code_is_refused(folder: Path) -> None:
    """trust_remote_code is never passed on."""
    with pytest.raises(UsageError, match="trust_remote_code"):
        HFTokenizerWrapper(folder, trust_remote_code=True)
