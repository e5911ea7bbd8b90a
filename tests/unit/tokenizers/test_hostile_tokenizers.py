"""Files from strangers: what is real loads, what is hostile is refused, and nothing hangs or aborts this process."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from foreign_files import KINDS, PADDING, TRUNCATION, Spec, damaged, make_spec, write_tokenizer
from tokenizer_texts import HARD_STRINGS, TEXTS

from llmt.errors import ModelFileError
from llmt.tokenizers.fast import FastTokenizer
from llmt.tokenizers.huggingface import HFTokenizerWrapper
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.trial import Trial, checked_tokenizer, rust_refusals
from llmt.tokenizers.validate import is_harmless, parse_tokenizer

PROBES = ["A word, 1 line.\n", "a" * 64 + "!", "x" * 40, *HARD_STRINGS[:12]]


@pytest.fixture(scope="module")
def specs() -> dict[str, Spec]:
    """One real file of each kind."""
    return {kind: make_spec(kind) for kind in KINDS}


def _load(data: bytes, trial: Trial) -> tokenizers.Tokenizer:
    """As `load_tokenizer` does, with a child that is used again."""
    _, text = checked_tokenizer(data, "tokenizer.json", trial)
    with rust_refusals("tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


@pytest.mark.parametrize("kind", KINDS)
def test_real_files_are_accepted(kind: str, specs: dict[str, Spec], tmp_path: Path) -> None:
    """Files as GPT-2, RoBERTa, Llama, BERT, T5, CLIP and others have them load, and give the library's ids."""
    spec = specs[kind]
    folder = write_tokenizer(tmp_path / kind, spec)
    loaded = load_tokenizer(folder)
    plain = tokenizers.Tokenizer.from_str(json.dumps(spec | {"padding": None, "truncation": None}))
    plain.encode_special_tokens = True
    for text in [*TEXTS, *HARD_STRINGS]:
        assert loaded.encode(text) == plain.encode(text, add_special_tokens=False).ids
    assert HFTokenizerWrapper(folder).encode(TEXTS[0]) == loaded.encode(TEXTS[0])


def test_padding_and_truncation_are_dropped(specs: dict[str, Spec], tmp_path: Path) -> None:
    """Blocks that pad to 2 thousand million, or cut everything off, have no effect and are not saved again."""
    blocks = {"padding": PADDING, "truncation": TRUNCATION}
    plain = load_tokenizer(write_tokenizer(tmp_path / "plain", specs["gpt2_like"])).encode(TEXTS[0])
    folder = write_tokenizer(tmp_path / "blocks", specs["gpt2_like"] | blocks)
    for tokenizer in (load_tokenizer(folder), HFTokenizerWrapper(folder)):
        assert tokenizer.encode(TEXTS[0]) == plain
        tokenizer.save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
        assert (saved["padding"], saved["truncation"]) == (None, None)


def _damage(seed: int, count: int, specs: dict[str, Spec]) -> dict[str, int]:
    rng = random.Random(seed)
    outcomes = {"loaded": 0, "refused": 0, "unnamed": 0}
    with Trial(seconds=2) as trial:
        for number in range(count):
            data = damaged(specs[list(specs)[number % len(specs)]], rng)
            try:
                backend = _load(data, trial)
                for text in PROBES:  # a panic here would be one that the trial did not show
                    backend.decode(backend.encode(text, add_special_tokens=False).ids)
                outcomes["loaded"] += 1
            except ModelFileError as refusal:
                outcomes["refused" if "tokenizer.json" in refusal.message else "unnamed"] += 1
    return outcomes


def test_damaged_files(specs: dict[str, Spec], every_kind: dict[str, FastTokenizer]) -> None:
    """300 damaged files of every kind: each is refused by name or encodes; none hangs or aborts this process."""
    own = {name: json.loads(tokenizer.backend.to_str()) for name, tokenizer in every_kind.items()}
    outcomes = _damage(1, 300, specs | own)
    assert sum(outcomes.values()) == 300
    assert outcomes["unnamed"] == 0
    assert outcomes["loaded"] >= 30
    assert outcomes["refused"] >= 150


@pytest.mark.slow
def test_many_damaged_files(specs: dict[str, Spec], every_kind: dict[str, FastTokenizer]) -> None:
    """2,000 more, of another seed."""
    own = {name: json.loads(tokenizer.backend.to_str()) for name, tokenizer in every_kind.items()}
    assert sum(_damage(2, 2000, specs | own).values()) == 2000


def _gpt2_with(**parts: Any) -> Spec:
    return make_spec("gpt2_like") | parts


SLOW_PATTERN = "(?:a?){2000}" * 6 + "a{2000}b"
IN_THE_CHILD = {
    "Unigram without pieces to cover a text": {
        "model": {"type": "Unigram", "unk_id": None, "vocab": [["q", -1.0]], "byte_fallback": False},
        "added_tokens": [],
    },
    "a pattern that is none": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    },
    "a map of characters that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a template without its tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("name", IN_THE_CHILD)
def test_what_only_a_trial_shows(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the library itself refuses or panics over is refused by name, and nothing reaches the terminal."""
    folder = write_tokenizer(tmp_path, _gpt2_with(**IN_THE_CHILD[name]))
    capfd.readouterr()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(folder)
    assert capfd.readouterr() == ("", "")


def test_a_child_that_takes_too_long_is_ended() -> None:
    """A file that is not done in time is refused with that reason, and the next one gets a new child."""
    spec = json.dumps(make_spec("gpt2_like"))
    with Trial(seconds=3) as trial:
        assert trial.refusal(spec) is None
        os.kill(trial.process_id, signal.SIGSTOP)  # it will not answer
        assert "3 seconds" in str(trial.refusal(spec))
        assert trial.refusal(spec) is None


def test_a_child_that_dies_is_replaced() -> None:
    """A file that aborts the library is refused, and the next one gets a new child."""
    spec = make_spec("gpt2_like")
    with Trial() as trial:
        assert "ended the process" in str(trial.refusal(json.dumps(spec | {"padding": PADDING})))
        assert trial.refusal(json.dumps(spec)) is None


def test_memory_is_bounded() -> None:
    """A file that asks for more than a gigabyte is refused, where the system can bound that."""
    pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say how much a process has mapped")
    fixed = PADDING | {"strategy": {"Fixed": 60_000_000}}  # about 2 GB of ids, masks and offsets
    with Trial(seconds=60) as trial:
        assert "ended the process" in str(trial.refusal(json.dumps(make_spec("gpt2_like") | {"padding": fixed})))


def test_own_files_need_no_child(every_kind: dict[str, FastTokenizer], specs: dict[str, Spec]) -> None:
    """What llmt writes is known by its parts, and so is a file that says nothing of itself but has those parts."""
    for tokenizer in every_kind.values():
        spec = parse_tokenizer(tokenizer.backend.to_str().encode(), "own")
        assert is_harmless(spec)
    assert not is_harmless(parse_tokenizer(json.dumps(specs["t5_like"]).encode(), "t5"))


def _split(**pattern: str) -> Spec:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


_ROBERTA = {"type": "RobertaProcessing", "sep": ["!", 0], "cls": ["!", 0], "trim_offsets": True}
OUTSIDE = {
    "another pattern": ("pre_tokenizer", _split(Regex="(a+)+$")),
    "two patterns": ("pre_tokenizer", _split(Regex="[a]", String="a")),
    "a class in a class": ("pre_tokenizer", _split(Regex="[a[b]]")),
    "a replacement": ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}),
    "another decoder": ("decoder", {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True}),
    "another processor": ("post_processor", {**_ROBERTA, "add_prefix_space": True}),
    "an unknown part": ("extra", 1),
    "another version": ("version", "2.0"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_one_foreign_part_is_enough(name: str, bpe: FastTokenizer) -> None:
    """A file of llmt's with one part that llmt does not write is tried like any other."""
    part, value = OUTSIDE[name]
    spec = json.loads(bpe.backend.to_str()) | {part: value}
    assert not is_harmless(parse_tokenizer(json.dumps(spec).encode(), "changed"))


def test_a_key_that_stands_twice(bpe: FastTokenizer, tmp_path: Path) -> None:
    """Two readers may each take another of two equal keys, so such a file is refused."""
    text = bpe.backend.to_str()
    folder = write_tokenizer(tmp_path, {})
    (folder / "tokenizer.json").write_text('{"padding": {"strategy": {"Fixed": 9}},' + text[1:], encoding="utf-8")
    with pytest.raises(ModelFileError, match="'padding' stands twice"):
        load_tokenizer(folder)


def test_ids_are_those_that_the_library_gives(bpe: FastTokenizer, tmp_path: Path) -> None:
    """A hole in the vocabulary that an added token fills would be numbered otherwise by the library."""
    spec = json.loads(bpe.backend.to_str())
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": bpe.vocab_size + 1, "content": "<late>"})
    with pytest.raises(ModelFileError, match="would give it"):
        load_tokenizer(write_tokenizer(tmp_path, spec))
