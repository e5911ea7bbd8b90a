"""The wrapper around AutoTokenizer."""

import copy
import importlib.util
import json
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizer_texts import HARD_STRINGS, PROSE, TEXTS

from llmt.cli.app import run as run_command
from llmt.errors import ConfigError, DataError, HubError, MismatchError, ModelFileError, UsageError
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
    assert "<|pad|>" in wrapper
    assert "no such piece" not in wrapper
    assert 1 not in wrapper
    with pytest.raises(AttributeError):
        _ = wrapper.no_such_thing


def test_attributes_are_set_on_the_wrapped_object(folder: Path) -> None:
    """Setting an attribute of the wrapper sets it where transformers looks, and the wrapper follows both ways."""
    wrapper = HFTokenizerWrapper(folder, padding_side="left")
    assert wrapper.padding_side == "left"
    wrapper.padding_side = "right"
    assert wrapper.tokenizer.padding_side == "right"
    wrapper.pad_token = "<|endoftext|>"
    assert wrapper.tokenizer.pad_token == "<|endoftext|>"
    assert wrapper.pad_token_id == wrapper.eos_token_id == wrapper.tokenizer.pad_token_id
    wrapper.tokenizer.pad_token = "<|pad|>"
    assert wrapper.special_tokens["pad_token"] == "<|pad|>"
    assert set(vars(wrapper)) == {"tokenizer", "notes"}


def test_batches_are_padded_and_cut(wrapper: HFTokenizerWrapper) -> None:
    """A call pads, cuts and gives tensors; `encode` with options of transformers passes them on."""
    batch = wrapper(["a", PROSE], padding=True, truncation=True, max_length=16, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 16)
    assert batch["attention_mask"].sum().item() == 16 + len(wrapper.encode("a"))
    assert batch["input_ids"][0, -1].item() == wrapper.pad_token_id
    assert wrapper.encode(PROSE, truncation=True, max_length=5) == wrapper.encode(PROSE)[:5]
    assert wrapper.decode(batch["input_ids"][1]) == wrapper.decode(wrapper.encode(PROSE)[:16])


def test_it_is_a_tokenizer_of_both_kinds(wrapper: HFTokenizerWrapper) -> None:
    """`isinstance` sees llmt's interface and the class of transformers, `type` the wrapper itself."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    for kind in (Tokenizer, HFTokenizerWrapper, PreTrainedTokenizerBase, PreTrainedTokenizerFast):
        assert isinstance(wrapper, kind)
    assert type(wrapper) is HFTokenizerWrapper
    assert not isinstance(wrapper, FastTokenizer)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GPT2Tokenizer", "BertTokenizer", "T5Tokenizer"])
def test_settings_without_a_vocabulary(name: str, tmp_path: Path) -> None:
    """A directory whose vocabulary was never copied is refused, not opened as a tokenizer that knows nothing."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}), encoding="utf-8")
    with pytest.raises(ModelFileError, match="no vocabulary"):
        HFTokenizerWrapper(tmp_path)


def test_copies(wrapper: HFTokenizerWrapper) -> None:
    """Pickled, copied and deep-copied wrappers encode alike; a deep copy is changed alone, a plain one is not."""
    for twin in (pickle.loads(pickle.dumps(wrapper)), copy.copy(wrapper), copy.deepcopy(wrapper)):
        assert type(twin) is HFTokenizerWrapper
        assert twin.encode("a day 😀") == wrapper.encode("a day 😀")
        assert twin.notes == wrapper.notes
    apart, size = copy.deepcopy(wrapper), wrapper.vocab_size
    apart.add_tokens(["<new>"])
    assert (len(apart), len(wrapper)) == (size + 1, size)
    assert copy.copy(wrapper).tokenizer is wrapper.tokenizer


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
    with pytest.raises(ModelFileError, match=r"no tokenizer that can be read: no tokenizer\.json"):
        HFTokenizerWrapper(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        HFTokenizerWrapper(tmp_path, subfolder="nothing")
    (tmp_path / "tokenizer_config.json").write_text("not JSON")
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json"):
        HFTokenizerWrapper(tmp_path)


@pytest.mark.parametrize(
    "name", ["", "a b", "a\nb", "a\x00b", "a\x1b[31m", "a/", "own--er/x", "a..b", "x.git", "é/x", "x" * 97, "x" * 5000]
)
def test_what_cannot_be_a_hub_name(name: str) -> None:
    """A name that the hub does not allow is a wrong path, said in printable characters, and is not looked up."""
    with pytest.raises(ModelFileError, match="no such tokenizer directory") as caught:
        HFTokenizerWrapper(name)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["none", "no-such-owner/no-such-name", "_x.y"])
def test_hub_out_of_reach(name: str) -> None:
    """A name that only the hub may know, without the hub, is a HubError that says there is no directory either."""
    for load in (HFTokenizerWrapper, load_tokenizer):
        with pytest.raises(HubError, match="no such directory") as caught:
            load(name, local_files_only=True)
        assert caught.value.message.startswith(f"{name}: ")
        assert caught.value.exit_code == 6


def _without_config(folder: Path, target: Path) -> Path:
    target.mkdir()
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
    return target


def test_a_lone_tokenizer_json(folder: Path, bpe: FastTokenizer, tmp_path: Path) -> None:
    """The file by its path or by its folder, with nothing beside it; what its tokens are for is said."""
    alone = _without_config(folder, tmp_path / "alone")
    for given in (alone, alone / "tokenizer.json", str(alone / "tokenizer.json")):
        wrapper = HFTokenizerWrapper(given)
        assert wrapper.encode_batch(HARD_STRINGS) == bpe.encode_batch(HARD_STRINGS)
        assert wrapper.eos_token_id == bpe.eos_token_id
        assert any("by their names" in note for note in wrapper.notes)


def test_padding_is_chosen_and_said(folder: Path, tmp_path: Path) -> None:
    """Without a padding token the end-of-text token pads, without that none does; both are said."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    alone = _without_config(folder, tmp_path / "alone")
    (alone / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    wrapper = HFTokenizerWrapper(alone)
    assert wrapper.pad_token_id == wrapper.eos_token_id
    assert any("'<|endoftext|>' pads" in note for note in wrapper.notes)
    assert wrapper(["a", "a day"], padding=True, return_tensors="pt")["input_ids"].shape[0] == 2
    spec = json.loads((alone / "tokenizer.json").read_text(encoding="utf-8"))
    (alone / "tokenizer.json").write_text(json.dumps(spec | {"added_tokens": []}), encoding="utf-8")
    (alone / "tokenizer_config.json").write_text(json.dumps(config))
    bare = HFTokenizerWrapper(alone)
    assert bare.pad_token_id is None
    assert any("none was chosen" in note for note in bare.notes)
    bare.tokenizer = wrapper.tokenizer
    assert bare.pad_token_id == wrapper.eos_token_id


LIKE_LLAMA: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}


@pytest.mark.parametrize("options", [{}, LIKE_LLAMA, {"add_dummy_prefix": False}], ids=["plain", "llama", "no prefix"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Ids, special ids and text are those that the sentencepiece package gives for the same file."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed: nothing to compare")
    lines = [line for text in TEXTS for line in text.splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "pieces"),
        model_type=kind,
        vocab_size=420,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    texts = [*HARD_STRINGS, *lines, "</s> <unk> <0x41>", "\u2581x", "x\u2581", "  a  ", "\u2581"]
    texts = [text.replace("\r\n", "\n") for text in texts]  # the library takes that pair for one character
    for given in (tmp_path / "pieces.model", tmp_path):
        wrapper = HFTokenizerWrapper(given)
        assert wrapper.vocab_size == theirs.vocab_size()
        assert (wrapper.unk_token_id, wrapper.bos_token_id, wrapper.eos_token_id) == (0, 1, 2)
        for text in texts:
            ids = theirs.encode(text)
            assert wrapper.encode(text) == ids, text
            assert wrapper.decode(ids) == theirs.decode(ids), text
        assert all(tuple(step) == ("left", "right", "piece", "count", "score") for step in wrapper.get_merge_history())
        assert bool(wrapper.get_merge_history()) == (kind == "bpe")


def test_added_tokens_and_a_resized_model(folder: Path) -> None:
    """A token added to the tokenizer has a row in the resized model, and old ids keep their logits."""
    import torch

    from llmt.config.model import ModelConfig
    from llmt.models.transformer import TransformerLM

    wrapper = HFTokenizerWrapper(folder)
    shape = ModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    model, size = TransformerLM(shape, len(wrapper), 32), len(wrapper)
    ids = torch.tensor([wrapper.encode("a day")])
    with torch.no_grad():
        before = model(ids)
        assert wrapper.add_special_tokens({"additional_special_tokens": ["<|user|>"]}) == 1
        model.resize_token_embeddings(len(wrapper))
        torch.testing.assert_close(model(ids)[..., :size], before, rtol=0, atol=1e-6)
        new = torch.tensor([wrapper("<|user|>a day")["input_ids"]])
        assert new[0, 0].item() == size
        assert torch.isfinite(model(new)).all()
    assert wrapper.encode("<|user|>") != [size]  # read out of a text only by a call
    assert wrapper.decode([size, *wrapper.encode("a day")]) == "a day"


def test_chat_template(folder: Path, tmp_path: Path) -> None:
    """A template that is set on the wrapper is used, copied and saved."""
    wrapper = HFTokenizerWrapper(folder)
    wrapper.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    talk = [{"role": "user", "content": "hello"}]
    said = "user: hello<|endoftext|>"
    wrapper.save_pretrained(tmp_path)
    for twin in (wrapper, copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper)), HFTokenizerWrapper(tmp_path)):
        assert twin.apply_chat_template(talk, tokenize=False) == said
    ids = wrapper.apply_chat_template(talk, return_dict=False)
    assert ids == [*wrapper.encode("user: hello"), wrapper.eos_token_id]


def test_trained_anew(folder: Path) -> None:
    """`train` learns another vocabulary of the same kind; what cannot be is refused and changes nothing."""
    wrapper = HFTokenizerWrapper(folder)
    before = wrapper.fingerprint()
    with pytest.raises(ConfigError, match="alphabet alone need"):
        wrapper.train(TEXTS, vocab_size=10)
    with pytest.raises(DataError):
        wrapper.train([])
    assert wrapper.fingerprint() == before
    wrapper.train(["zebra zebra zebra giraffe giraffe"] * 5, vocab_size=280)
    assert wrapper.fingerprint() != before
    assert len(wrapper.encode("zebra")) < 3
    assert wrapper.decode(wrapper.encode(PROSE)) == PROSE
    assert wrapper.eos_token_id == wrapper.token_to_id("<|endoftext|>")


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "byte", "unigram", "wordpiece", "prefix", "bert"])
def test_bytes_and_merges(kind: str, every_kind: dict[str, FastTokenizer], tmp_path: Path) -> None:
    """Bytes of every id, and the merges of a BPE, are those that the Rust tokenizer behind it has."""
    fast = every_kind[kind]
    fast.save_pretrained(tmp_path)
    wrapper = HFTokenizerWrapper(tmp_path)
    ids = range(fast.vocab_size)
    assert [wrapper.token_bytes(i) for i in ids] == [fast.token_bytes(i) for i in ids]
    pieces = [step["piece"] for step in wrapper.get_merge_history()]
    assert pieces == ([step["piece"] for step in fast.get_merge_history()] if kind in ("bpe", "gpt2") else [])


def test_bytes_of_many_ids_are_quick_and_never_stale(folder: Path) -> None:
    """50,000 calls take seconds, not the hour of reading the vocabulary each time; a new decoder counts at once."""
    from tokenizers import decoders

    wrapper = HFTokenizerWrapper(folder)
    space = wrapper.encode(" ")[0]
    begun = time.monotonic()
    for _ in range(50_000):
        wrapper.token_bytes(space)
    assert time.monotonic() - begun < 20
    assert wrapper.token_bytes(space) == b" "
    wrapper.backend_tokenizer.decoder = decoders.Fuse()
    assert wrapper.token_bytes(space) == "\u0120".encode()


@pytest.fixture(scope="module")
def gpt2() -> HFTokenizerWrapper:
    """GPT-2's tokenizer from nothing but vocab.json and merges.txt."""
    data = os.environ.get("TEST_DATA_DIR")
    if data is None:
        pytest.skip("TEST_DATA_DIR is not set: no vocabulary of GPT-2")
    return HFTokenizerWrapper(Path(data) / "gpt2-tokenizer")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("hello world", [31373, 995]),
        ("Hello, world!", [15496, 11, 995, 0]),
        (" the", [262]),
        ("The quick brown fox jumps over the lazy dog", [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290]),
        ("\n", [198]),
        ("", []),
    ],
)
def test_known_ids_of_gpt2(gpt2: HFTokenizerWrapper, text: str, ids: list[int]) -> None:
    """The ids are those that GPT-2 is known by, and give the text back."""
    assert gpt2.encode(text) == ids
    assert gpt2.decode(ids) == text


def test_gpt2_from_two_files(gpt2: HFTokenizerWrapper) -> None:
    """Sizes, roles, merges and notes of GPT-2."""
    assert (len(gpt2), gpt2.eos_token_id, gpt2.pad_token_id, gpt2.is_lossless) == (50257, 50256, 50256, True)
    assert gpt2("<|endoftext|>")["input_ids"] == [50256]
    assert 50256 not in gpt2.encode("<|endoftext|>")
    merges = gpt2.get_merge_history()
    assert (len(merges), merges[0]["left"], merges[0]["right"], merges[0]["piece"]) == (50000, "Ġ", "t", "Ġt")
    assert gpt2.get_tokenization_stats()["merges"] == 50000
    assert any("as GPT-2 splits" in note for note in gpt2.notes)
    assert any("pads" in note for note in gpt2.notes)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.parametrize("what", ["wrapper", "wrapped"])
def test_trl_takes_it(what: str, folder: Path, tmp_path: Path) -> None:
    """SFTTrainer takes the wrapper, and the wrapped object, as `processing_class`, and saves it with the model."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    wrapper = HFTokenizerWrapper(folder)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    special = {"eos_token_id": wrapper.eos_token_id, "pad_token_id": wrapper.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(wrapper), num_attention_heads=2, **sizes, **special))
    trainer = SFTTrainer(
        model=model,
        processing_class=wrapper if what == "wrapper" else wrapper.tokenizer,
        train_dataset=Dataset.from_list([{"text": "a day"}] * 4),
        args=SFTConfig(
            output_dir=str(tmp_path / "out"), max_length=16, max_steps=2, per_device_train_batch_size=2,
            report_to="none", use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        ),
    )  # fmt: skip
    assert trainer.train().global_step == 2
    assert trainer.train_dataset[0]["input_ids"] == [*wrapper.encode("a day"), wrapper.eos_token_id]
    trainer.save_model(str(tmp_path / "saved"))
    assert load_tokenizer(tmp_path / "saved").encode("a day") == wrapper.encode("a day")


def test_exit_codes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line a name that cannot be one ends with 4, one that the hub may know with 6."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_command(["tokenizer", "inspect", "a b/c d", "text"]) == 4
    assert run_command(["tokenizer", "inspect", "nobody/nothing", "text"]) == 6
    assert "no such directory" in capfd.readouterr().err


def test_remote_code_is_refused(folder: Path) -> None:
    """trust_remote_code is never passed on."""
    with pytest.raises(UsageError, match="trust_remote_code"):
        HFTokenizerWrapper(folder, trust_remote_code=True)
