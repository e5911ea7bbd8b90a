"""What every tokenizer keeps to, whoever wrote it."""

import copy
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from tokenizer_texts import HARD_STRINGS, TEXTS

import llmt
from llmt.errors import ConfigError, DataError, MismatchError, ModelFileError, UsageError
from llmt.tokenizers.base import BaseTokenizer, Tokenizer
from llmt.tokenizers.bpe import BPETokenizer, ByteTokenizer, UnigramTokenizer
from llmt.tokenizers.fast import FastTokenizer, PretrainedTokenizer, TrainableTokenizer
from llmt.tokenizers.huggingface import HFTokenizerWrapper
from llmt.tokenizers.wordpiece import WordPieceTokenizer


class CharacterTokenizer(BaseTokenizer):
    """The least that a tokenizer of one's own must define: here one id for each character."""

    def __init__(self, characters: Sequence[str] = ()) -> None:
        self._pieces = ["<end>", "<unk>", *characters]

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def special_tokens(self) -> dict[str, str]:
        return {"eos_token": "<end>", "unk_token": "<unk>"}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = [self._pieces.index(char) if char in self._pieces else 1 for char in clean]
        return [*ids, 0] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(self._pieces[i] for i in ids if i < len(self._pieces) and not (skip_special_tokens and i < 2))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        if any(not 0 <= i < len(self._pieces) for i in ids):
            raise MismatchError("there is no such id")
        return [self._pieces[i] for i in ids]

    def token_to_id(self, token: str) -> int | None:
        return self._pieces.index(token) if token in self._pieces else None

    def train(
        self, texts: Iterable[str], vocab_size: int = 30_000, min_frequency: int = 2, verbose: bool = False
    ) -> None:
        seen = sorted({char for text in texts for char in text})
        if not seen:
            raise DataError("there is no text")
        self._pieces[2:] = seen[: vocab_size - 2]

    def save_pretrained(self, directory: str | Path) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "characters.json").write_text(json.dumps(self._pieces[2:]))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        path = Path(directory) / "characters.json"
        if not path.is_file():
            raise ModelFileError(f"{directory}: no characters")
        return cls(json.loads(path.read_text()))


NEW: dict[str, Callable[[], Tokenizer]] = {
    "bpe": BPETokenizer,
    "gpt2": lambda: BPETokenizer(split="gpt2"),
    "unigram": UnigramTokenizer,
    "byte": ByteTokenizer,
    "wordpiece": WordPieceTokenizer,
    "bert": lambda: WordPieceTokenizer(style="bert"),
    "own": CharacterTokenizer,
}
"""Every kind, as one makes it."""

LOSSLESS = {"bpe", "gpt2", "unigram", "byte", "wordpiece", "foreign", "transformers"}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Every kind, trained, and the two that read what others trained."""
    kinds: dict[str, Tokenizer] = {}
    for name, make in NEW.items():
        kinds[name] = make()
        kinds[name].train(TEXTS, vocab_size=700)
    folder = tmp_path_factory.mktemp("foreign")
    kinds["bpe"].save_pretrained(folder)
    (folder / "training.json").unlink()
    kinds["foreign"] = PretrainedTokenizer.from_pretrained(folder)
    kinds["transformers"] = HFTokenizerWrapper(folder, local_files_only=True)
    return kinds


KINDS = [*NEW, "foreign", "transformers"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, kinds: dict[str, Tokenizer]) -> tuple[str, Tokenizer]:
    """One kind after another."""
    return request.param, kinds[request.param]


def test_ids_are_a_range(kind: tuple[str, Tokenizer]) -> None:
    """Ids go from 0 to vocab_size - 1, each has a piece, and a piece finds its id again."""
    _, tokenizer = kind
    pieces = tokenizer.tokens(range(tokenizer.vocab_size))
    assert len(set(pieces)) == tokenizer.vocab_size == len(tokenizer)
    assert [tokenizer.token_to_id(piece) for piece in pieces] == list(range(tokenizer.vocab_size))
    assert tokenizer.token_to_id("no such piece in any vocabulary") is None
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(MismatchError):
            tokenizer.tokens([wrong])


def test_special_tokens_have_their_ids(kind: tuple[str, Tokenizer]) -> None:
    """Each role's token is in the vocabulary and is what the properties say."""
    _, tokenizer = kind
    special = tokenizer.special_tokens
    found = {
        "eos_token": tokenizer.eos_token_id,
        "bos_token": tokenizer.bos_token_id,
        "pad_token": tokenizer.pad_token_id,
        "unk_token": tokenizer.unk_token_id,
    }
    for role, token_id in found.items():
        assert token_id == (tokenizer.token_to_id(special[role]) if role in special else None), role


def test_texts_come_back(kind: tuple[str, Tokenizer]) -> None:
    """A lossless kind gives every text back; every kind gives back a text of known letters."""
    name, tokenizer = kind
    assert tokenizer.is_lossless == (name in LOSSLESS)
    assert tokenizer.decode(tokenizer.encode("the day")) == "the day"
    for text in HARD_STRINGS if name in LOSSLESS else ():
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_batches_are_single_texts(kind: tuple[str, Tokenizer]) -> None:
    """A batch gives what its texts give one by one, both ways."""
    _, tokenizer = kind
    texts = [*HARD_STRINGS, *TEXTS]
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode_batch(batch) == [tokenizer.decode(ids) for ids in batch]
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.decode_batch([]) == []
    asked = tokenizer.encode_batch(texts, add_special_tokens=True)
    assert asked == [tokenizer.encode(text, add_special_tokens=True) for text in texts]


def test_special_tokens_only_when_asked(kind: tuple[str, Tokenizer]) -> None:
    """Special tokens are added when asked for, never read from a text, and left out of decoding unless asked."""
    name, tokenizer = kind
    plain = tokenizer.encode("the day")
    framed = tokenizer.encode("the day", add_special_tokens=True)
    special_ids = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens.values()}
    assert not special_ids.intersection(plain)
    if name != "transformers":  # whose tokenizer.json puts nothing around a text
        assert framed[-1] == tokenizer.eos_token_id
        assert [i for i in framed if i not in special_ids] == plain
    assert tokenizer.decode(framed) == "the day"
    if framed != plain:
        assert tokenizer.decode(framed, skip_special_tokens=False) != "the day"
    spelled = tokenizer.encode(f"a {tokenizer.special_tokens['eos_token']} b")
    assert tokenizer.eos_token_id not in spelled


def test_ids_from_nowhere_have_no_text(kind: tuple[str, Tokenizer]) -> None:
    """A padded model may draw an id beyond the vocabulary: decoding passes over it."""
    _, tokenizer = kind
    ids = tokenizer.encode("the day")
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "the day"


def test_streams_give_the_text(kind: tuple[str, Tokenizer]) -> None:
    """Ids decoded one by one give the text that decoding all of them gives."""
    _, tokenizer = kind
    for text in ("the day was over", "Über 今日 👩\u200d👧"):
        ids = tokenizer.encode(text)
        stream = tokenizer.decode_stream()
        pieces = [stream.step(token_id) or "" for token_id in ids]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_saved_and_read_back(kind: tuple[str, Tokenizer], tmp_path: Path) -> None:
    """A tokenizer read back encodes alike and tells the same of itself; another directory is an error."""
    name, tokenizer = kind
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = type(tokenizer).from_pretrained(tmp_path / "saved")
    texts = [*HARD_STRINGS, *TEXTS]
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.get_merge_history() == tokenizer.get_merge_history()
    assert loaded.get_tokenization_stats() == tokenizer.get_tokenization_stats()
    with pytest.raises(ModelFileError):
        type(tokenizer).from_pretrained(tmp_path)
    if isinstance(tokenizer, FastTokenizer) and name != "foreign":
        assert json.loads((tmp_path / "saved" / "training.json").read_text("utf-8")) == tokenizer.training


def test_copies(kind: tuple[str, Tokenizer]) -> None:
    """A pickled, copied or deeply copied tokenizer is the same one."""
    _, tokenizer = kind
    for copied in (pickle.loads(pickle.dumps(tokenizer)), copy.copy(tokenizer), copy.deepcopy(tokenizer)):
        assert copied.encode_batch(HARD_STRINGS) == tokenizer.encode_batch(HARD_STRINGS)
        assert copied.fingerprint() == tokenizer.fingerprint()


def test_numbers_are_true(kind: tuple[str, Tokenizer]) -> None:
    """Statistics, segmentation and compression are what counting gives."""
    _, tokenizer = kind
    stats = tokenizer.get_tokenization_stats()
    special = set(tokenizer.special_tokens.values())
    lengths = [len(piece) for piece in tokenizer.tokens(range(tokenizer.vocab_size)) if piece not in special]
    assert stats["vocab_size"] == tokenizer.vocab_size
    assert stats["special_tokens"] == len(special)
    assert stats["merges"] == len(tokenizer.get_merge_history())
    assert stats["longest_token_length"] == max(lengths)
    assert stats["average_token_length"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-3)
    words = tokenizer.analyze_word_segmentation(["day", "sacks"])
    assert words == {word: tokenizer.tokens(tokenizer.encode(word)) for word in ("day", "sacks")}
    ids = [tokenizer.encode(text) for text in TEXTS]
    expected = sum(map(len, TEXTS)) / sum(map(len, ids))
    assert tokenizer.calculate_compression_ratio(TEXTS) == pytest.approx(expected)
    assert tokenizer.calculate_compression_ratio(iter(TEXTS)) == pytest.approx(expected)
    with pytest.raises(DataError):
        tokenizer.calculate_compression_ratio([""])


REPEATABLE = [name for name in NEW if name != "unigram"]
"""Kinds that learn the same twice; the library's unigram trainer does not."""


@pytest.mark.parametrize("name", REPEATABLE)
def test_training_replaces_what_was_learnt(name: str) -> None:
    """A second training leaves nothing of the first: ids, words remembered, and record are those of a new one."""
    first, second = ["banana bandana " * 30, "cabana"], ["zebra zigzag " * 30, "zoo"]
    twice, once = NEW[name](), NEW[name]()
    twice.train(first, vocab_size=600)
    twice.encode("banana zebra")
    twice.train(second, vocab_size=600)
    once.train(second, vocab_size=600)
    assert twice.fingerprint() == once.fingerprint()
    assert twice.encode("banana zebra") == once.encode("banana zebra")
    assert twice.get_tokenization_stats() == once.get_tokenization_stats()


@pytest.mark.parametrize("name", REPEATABLE)
def test_training_from_a_folder(name: str, tmp_path: Path) -> None:
    """A local folder serves as a data set; `max_samples` documents of it are read."""
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    whole, part, from_texts = NEW[name](), NEW[name](), NEW[name]()
    whole.train_from_dataset(str(tmp_path), vocab_size=650)
    from_texts.train(TEXTS, vocab_size=650)
    assert whole.fingerprint() == from_texts.fingerprint()
    part.train_from_dataset(str(tmp_path), vocab_size=650, max_samples=4)
    from_texts.train(TEXTS[:4], vocab_size=650)
    assert part.fingerprint() == from_texts.fingerprint()


@pytest.mark.parametrize("name", ["bpe", "unigram", "wordpiece", "bert"])
def test_untrained(name: str, tmp_path: Path) -> None:
    """Before training there are no ids, and using them is an error that says what to do."""
    tokenizer = NEW[name]()
    assert tokenizer.vocab_size == 0
    for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1]), lambda: tokenizer.save_pretrained("x")):
        with pytest.raises(UsageError, match="not trained"):
            use()


def test_foreign_tokenizers_are_not_trained(kinds: dict[str, Tokenizer]) -> None:
    """How a foreign tokenizer.json was learnt is not known: training it is refused."""
    with pytest.raises(UsageError, match="elsewhere"):
        kinds["foreign"].train(TEXTS)


def test_other_kinds_are_refused(kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    """A class reads what it wrote and refuses what another algorithm did."""
    kinds["bpe"].save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="bpe"):
        WordPieceTokenizer.from_pretrained(tmp_path)


def test_saving_over_another_kind(kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Nothing of the tokenizer that stood in a directory before is taken for the new one's."""
    for name in ("foreign", "transformers"):
        kinds["wordpiece"].save_pretrained(tmp_path)
        kinds[name].save_pretrained(tmp_path)
        loaded = llmt.load_tokenizer(tmp_path)
        assert isinstance(loaded, PretrainedTokenizer)
        assert loaded.get_merge_history() == kinds["foreign"].get_merge_history()
        assert loaded.get_tokenization_stats()["vocab_size"] == loaded.vocab_size


DAMAGED_RECORDS = [
    {"options": None}, {"options": ["x"]}, {"options": {"nope": 1}}, {"options": {"max_subword_length": "x"}},
    {"options": {"continuation_prefix": 5}}, {"options": {"style": "zzz"}}, {"algo": "bpe"},
]  # fmt: skip


@pytest.mark.parametrize("change", DAMAGED_RECORDS, ids=str)
def test_damaged_records(change: dict[str, object], kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    """A training record that somebody changed is refused by name, and no reason to crash."""
    kinds["wordpiece"].save_pretrained(tmp_path)
    path = tmp_path / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"training\.json"):
        llmt.load_tokenizer(tmp_path)


@pytest.mark.parametrize("merge", [["a", "b"], ["a", "b", "ab", 1, "x"], [["a"], "b", "ab", 1, 0.5], None], ids=str)
def test_damaged_merges(merge: object, kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    """So is a merge of the record, when the merges are asked for."""
    kinds["wordpiece"].save_pretrained(tmp_path)
    path = tmp_path / "training.json"
    record = json.loads(path.read_text("utf-8"))
    record["merges"][3] = merge
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"training\.json"):
        llmt.load_tokenizer(tmp_path).get_merge_history()


@pytest.mark.parametrize("kind", [BPETokenizer, UnigramTokenizer, WordPieceTokenizer])
def test_sizes_that_cannot_be(kind: type[TrainableTokenizer]) -> None:
    """A vocabulary without bounds is refused before the library aborts over it."""
    for size in (10**7, 10**12, 9 * 10**18):
        with pytest.raises(ConfigError, match="vocab_size"):
            kind().train(TEXTS, vocab_size=size)


@pytest.mark.parametrize("options", [{"style": "z"}, {"threshold": "z"}, {"score": "z"}, {"max_subword_length": 10**6}])
def test_choices_that_are_none(options: dict[str, Any]) -> None:
    """A misspelt choice is an error of the configuration, not another choice."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        WordPieceTokenizer(**options)
    with pytest.raises(ConfigError, match="engine"):
        WordPieceTokenizer().train(TEXTS, engine="z")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="split"):
        BPETokenizer(split="z")  # type: ignore[arg-type]


def test_words_are_remembered_within_bounds(kinds: dict[str, Tokenizer]) -> None:
    """The cache changes nothing but speed, whatever its size; 10,000 words is what it begins with."""
    tokenizer = copy.deepcopy(kinds["wordpiece"])
    assert isinstance(tokenizer, FastTokenizer)
    assert tokenizer.cache_size == 10_000
    expected = kinds["wordpiece"].encode_batch(HARD_STRINGS + TEXTS)
    for size in (0, 1, 7, 100_000):
        tokenizer.cache_size = size
        assert tokenizer.encode_batch(HARD_STRINGS + TEXTS) == expected
        assert tokenizer.words_remembered <= size


def test_progress_is_logged_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    """`verbose` writes to the log, and nothing is written without it."""
    tokenizer = WordPieceTokenizer()
    with caplog.at_level("INFO", logger="llmt.tokenizers"):
        tokenizer.train(TEXTS, vocab_size=600)
        assert not caplog.records
        tokenizer.train(TEXTS, vocab_size=600, verbose=True)
    assert "600 of 600" in caplog.messages[-1]


def test_public_names() -> None:
    """The classes are reached from the package itself."""
    assert llmt.BaseTokenizer is llmt.Tokenizer is Tokenizer
    assert llmt.WordPieceTokenizer is WordPieceTokenizer
    assert (llmt.BPETokenizer, llmt.UnigramTokenizer, llmt.ByteTokenizer) == (
        BPETokenizer,
        UnigramTokenizer,
        ByteTokenizer,
    )
