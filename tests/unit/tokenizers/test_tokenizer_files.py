"""Saving and loading, and what AutoTokenizer makes of the files."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizer_texts import HARD_STRINGS, TEXTS

from llmt.errors import ModelFileError, StorageError
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.load import load_tokenizer


def test_load_gives_the_same(every_kind: dict[str, FastTokenizer], tmp_path: Path) -> None:
    """A saved and loaded tokenizer has the same ids, roles, record and fingerprint, and saves the same bytes."""
    for name, tokenizer in every_kind.items():
        tokenizer.save_pretrained(tmp_path / name)
        loaded = load_tokenizer(tmp_path / name)
        assert isinstance(loaded, FastTokenizer)
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.training == tokenizer.training
        assert loaded.is_lossless == tokenizer.is_lossless
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.encode_batch(HARD_STRINGS) == tokenizer.encode_batch(HARD_STRINGS)
        loaded.save_pretrained(tmp_path / "again" / name)
        for path in (tmp_path / name).iterdir():
            assert (tmp_path / "again" / name / path.name).read_bytes() == path.read_bytes()


def test_auto_tokenizer_agrees(every_kind: dict[str, FastTokenizer], tmp_path: Path) -> None:
    """AutoTokenizer gives the same ids and the same decoded text on hard strings."""
    from transformers import AutoTokenizer

    for name, tokenizer in every_kind.items():
        tokenizer.save_pretrained(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name, local_files_only=True)
        assert len(theirs) == tokenizer.vocab_size
        assert (theirs.eos_token_id, theirs.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
        assert (theirs.pad_token_id, theirs.unk_token_id) == (tokenizer.pad_token_id, tokenizer.unk_token_id)
        for text in [*TEXTS, *HARD_STRINGS]:
            ids = tokenizer.encode(text)
            assert theirs(text)["input_ids"] == ids
            assert theirs.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
        special = f"a {tokenizer.special_tokens['eos_token']} b"
        assert theirs(special, split_special_tokens=True)["input_ids"] == tokenizer.encode(special)
        assert tokenizer.eos_token_id in theirs(special)["input_ids"]


def test_foreign_settings_are_kept(bpe: FastTokenizer, tmp_path: Path) -> None:
    """A chat template and unknown settings survive load and save; code references do not."""
    bpe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {
        "model_max_length": 77,
        "auto_map": {"AutoTokenizer": "evil.Evil"},
        "tokenizer_class": "GPT2Tokenizer",
    }
    config["eos_token"] = {"content": "<|endoftext|>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "copy")
    copied = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert copied["model_max_length"] == 77
    assert copied["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert copied["eos_token"] == "<|endoftext|>"
    assert "auto_map" not in copied
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_bert_names_stand_in(bert: FastTokenizer, tmp_path: Path) -> None:
    """A BERT directory that names only cls and sep has them as begin and end."""
    bert.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"cls_token": "[CLS]", "sep_token": "[SEP]"}')
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (2, 3, None)


def test_no_end_token(bpe: FastTokenizer, tmp_path: Path) -> None:
    """A tokenizer.json alone loads and encodes; asking for the end token it does not name is an error."""
    bpe.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("a day") == bpe.encode("a day")
    with pytest.raises(ModelFileError, match="end-of-text"):
        _ = loaded.eos_token_id


def test_what_is_not_there(tmp_path: Path) -> None:
    """No directory, an empty one, and a special token that is not in the vocabulary are named as such."""
    with pytest.raises(ModelFileError, match="no such tokenizer directory"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_special_token_missing_from_vocabulary(bpe: FastTokenizer, tmp_path: Path) -> None:
    """A configuration that names a token the vocabulary lacks is refused."""
    bpe.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ModelFileError, match="'</s>'"):
        load_tokenizer(tmp_path)


def test_save_where_a_file_stands(bpe: FastTokenizer, tmp_path: Path) -> None:
    """A target that is a file is refused by name."""
    (tmp_path / "taken").write_text("x")
    with pytest.raises(StorageError, match="taken"):
        bpe.save_pretrained(tmp_path / "taken")


def _set(*path: Any, to: Any) -> Any:
    def change(spec: dict[str, Any]) -> None:
        node: Any = spec
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return change


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
HARMFUL = {
    "huge id": _set("model", "vocab", "Z", to=4_000_000_000),
    "negative id": _set("model", "vocab", "!", to=-1),
    "two pieces, one id": _set("model", "vocab", "!", to=3),
    "id that is no number": _set("model", "vocab", "!", to="2"),
    "boolean id": _set("model", "vocab", "!", to=True),
    "added token elsewhere": _set("added_tokens", 0, "id", to=5),
    "added token beyond": _set("added_tokens", 0, to={"id": 10**9, "content": "<x>", "special": True}),
    "merge of nothing": _set("model", "merges", 0, to=["qqq", "zzz"]),
    "merge that is no pair": _set("model", "merges", 0, to=["a"]),
    "replacement bomb": _set("normalizer", to={"type": "Sequence", "normalizers": [REPLACE] * 6}),
    "decoder bomb": _set("decoder", to={"type": "Sequence", "decoders": [REPLACE] * 6}),
    "many steps": _set("normalizer", to={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}),
    "long pattern": _set("pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": "(a|b)" * 1000}),
    "broken pattern": _set("pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": "("}),
    "unknown step": _set("normalizer", to={"type": "Exec"}),
    "unknown model": _set("model", "type", to="Magic"),
    "no model": _set("model", to=None),
    "vocabulary of numbers": _set("model", "vocab", to=7),
    "empty vocabulary": _set("model", "vocab", to={}),
    "post-processor": _set(
        "post_processor",
        to={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [10**6], "tokens": ["x"]}},
        },
    ),
    "deep nesting": _set("normalizer", to=None),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_files_are_refused(name: str, bpe: FastTokenizer, tmp_path: Path) -> None:
    """A tokenizer.json that would abort, hang, allocate without end or lie is refused before it is used."""
    bpe.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    HARMFUL[name](spec)
    path.write_text(json.dumps(spec), encoding="utf-8")
    if name == "deep nesting":
        path.write_text("[" * 100_000)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"model": NaN}', b"PK\x03\x04"])
def test_files_that_are_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    """Cut, binary or unrelated files are refused by name."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_truncated_anywhere(bpe: FastTokenizer, tmp_path: Path) -> None:
    """A file that was cut short is refused wherever the cut is."""
    bpe.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for part in range(0, len(whole) - 1, len(whole) // 15):
        (tmp_path / "tokenizer.json").write_bytes(whole[:part])
        with pytest.raises(ModelFileError):
            load_tokenizer(tmp_path)


def test_pickled_for_workers(every_kind: dict[str, FastTokenizer]) -> None:
    """A tokenizer sent to another process, or copied, encodes alike, special-token text included."""
    for tokenizer in every_kind.values():
        text = f"a day {tokenizer.special_tokens['eos_token']} 😀"
        for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.copy(tokenizer), copy.deepcopy(tokenizer)):
            assert twin.encode(text) == tokenizer.encode(text)
            assert twin.fingerprint() == tokenizer.fingerprint()


def test_fingerprint_tells_tokenizers_apart(every_kind: dict[str, FastTokenizer]) -> None:
    """Different tokenizers have different fingerprints of 64 hexadecimal digits."""
    prints = {tokenizer.fingerprint() for tokenizer in every_kind.values()}
    assert len(prints) == len(every_kind)
    assert {len(print_) for print_ in prints} == {64}
