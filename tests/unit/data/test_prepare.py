"""Documents to shards in the cache."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmt.config.data import DataConfig
from llmt.data.chat import ChatWriter
from llmt.data.findings import Finding
from llmt.data.prepare import fingerprint_data, prepare_shards
from llmt.data.shards import ShardSet
from llmt.data.split import hold_out
from llmt.data.store import PreparedData, open_prepared
from llmt.errors import DataError, StorageError
from llmt.text.sources import open_documents
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.load import load_tokenizer

Folder = Callable[[int], Path]


def _config(source: Path, **options: object) -> DataConfig:
    return DataConfig.model_validate({"sources": [str(source)], "block_size": 16} | options)


def _fingerprint(config: DataConfig, tokenizer: Tokenizer) -> str:
    return fingerprint_data(config, tokenizer, ChatWriter(tokenizer, config.chat_template))


def _encoded(texts: list[str], tokenizer: Tokenizer) -> list[int]:
    end = tokenizer.eos_token_id
    return [end, *(token for text in texts for token in [*tokenizer.encode(text), end])]


def _ids(shards: ShardSet | None) -> list[int]:
    assert shards is not None
    ids: list[int] = shards.tokens.tolist()
    return ids


@pytest.mark.parametrize("files", [3, 60])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_shards_equal_a_direct_encoding(
    tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder, files: int, share: float
) -> None:
    """Both splits hold what encoding each document by itself gives, and the size of its text."""
    config = _config(text_folder(files), validation_split=share)
    prepared = prepare_shards(config, tokenizer, tmp_path / "cache")
    parts = list(hold_out(open_documents(config.sources), share))
    for held, shards in ((False, prepared.train[0]), (True, prepared.validation)):
        texts = [part.text for part, is_held in parts if is_held == held]
        if held and share == 0:
            assert shards is None
            continue
        assert _ids(shards) == _encoded(texts, tokenizer)
        assert shards is not None
        assert (shards.documents, shards.text_bytes) == (
            len(texts),
            sum(len(text.encode()) for text in texts),
        )


def test_batches_of_any_size_give_the_same_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """More documents than one batch holds, and one longer than a batch."""
    rows = [{"text": f"row {number} " + "word " * (number % 7)} for number in range(1500)]
    rows.insert(700, {"text": "a long text. " * 80_000})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    seen: list[tuple[int, int]] = []
    prepared = prepare_shards(
        _config(path, validation_split=0),
        tokenizer,
        tmp_path / "cache",
        progress=lambda size, documents: seen.append((size, documents)),
    )
    assert _ids(prepared.train[0]) == _encoded([row["text"] for row in rows], tokenizer)
    assert seen == sorted(seen)
    assert len(seen) > 3
    assert seen[-1] == (prepared.train[0].text_bytes, 1501)


def test_the_number_of_processes_changes_no_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Shards made by one process and by two are the same files."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"row {number}: " + "word, " * (number % 9)}) for number in range(1500))
    )
    files = []
    for num_proc in (1, 2):
        config = _config(path, num_proc=num_proc, validation_split=0.1)
        prepared = prepare_shards(config, tokenizer, tmp_path / f"cache {num_proc}")
        assert not prepared.reused
        files.append({file.name: file.read_bytes() for file in prepared.directory.glob("*.bin")})
    assert files[0] == files[1]
    assert len(files[0]) == 4


def test_validation_sources_are_held_out_whole(tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder) -> None:
    """`sources` is trained on whole, without the documents that are held out."""
    folder = text_folder(30)
    held = tmp_path / "held.txt"
    held.write_bytes((folder / "003.txt").read_bytes())
    prepared = prepare_shards(_config(folder, validation_sources=[str(held)]), tokenizer, tmp_path / "cache")
    text = held.read_bytes().decode()
    assert _ids(prepared.validation) == _encoded([text], tokenizer)
    others = [document.text for document in open_documents([str(folder)]) if document.text != text]
    assert len(others) == 29
    assert _ids(prepared.train[0]) == _encoded(others, tokenizer)
    assert prepared.text.overlap == Finding(1, [str(folder / "003.txt")])
    assert prepared.text.overlap_share == 1
    assert prepared.notes == (f"validated on {held}",)


def test_the_cache_is_used_again(tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder) -> None:
    """The second call opens the same folder, writes nothing, and gives the same in every other respect."""
    config = _config(text_folder(25))
    first = prepare_shards(config, tokenizer, tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    second = prepare_shards(config, tokenizer, tmp_path / "cache", progress=lambda *_: pytest.fail("read again"))
    assert (first.reused, second.reused) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in second.directory.iterdir()} == before
    assert (second.text, second.notes, second.fingerprint) == (first.text, first.notes, first.fingerprint)
    assert first.directory == tmp_path / "cache" / first.fingerprint[:16]


def test_text_of_the_same_size_and_time_is_new_text(tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder) -> None:
    """A cache is never taken for text that changed."""
    folder = text_folder(3)
    config = _config(folder, validation_split=0)
    first = prepare_shards(config, tokenizer, tmp_path / "cache")
    path = folder / "001.txt"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes().replace(b"fox", b"cat"))
    os.utime(path, ns=times)
    second = prepare_shards(config, tokenizer, tmp_path / "cache")
    assert not second.reused
    assert second.directory != first.directory
    texts = [document.text for document in open_documents(config.sources)]
    assert "cat" in texts[1]
    assert _ids(second.train[0]) == _encoded(texts, tokenizer)


def test_every_option_that_decides_the_ids_is_in_the_fingerprint(
    tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder
) -> None:
    """And those that do not (block size, threads) are not."""
    folder = text_folder(3)
    config = _config(folder)
    same = [
        config,
        _config(folder, block_size=32),
        _config(folder, num_workers=2),
        _config(folder, num_proc=2),
        _config(folder, packing="none", truncation="drop", document_mask=True, max_dropped=0.5),
    ]
    other = [
        _config(folder, validation_split=0.1),
        _config(folder, text_column="body"),
        _config(folder, encoding_errors="replace"),
        _config(folder, validation_sources=[str(folder)]),
        _config(folder / "000.txt"),
        _config(folder, mixture=[1]),
        _config(folder, format="text"),
        _config(folder, columns={"prompt": "a"}),
        _config(folder, prompt_template="{a}"),
        _config(folder, chat_template=str(folder / "000.txt")),
        _config(folder, train_on_prompt=True),
        _config(folder, split_on="x"),
        _config(folder, max_samples=2),
        _config(folder, skip_bad=1),
        _config(folder, deduplicate=True),
    ]
    prints = {_fingerprint(each, tokenizer) for each in same}
    assert len(prints) == 1
    prints |= {_fingerprint(each, tokenizer) for each in other}
    prints.add(_fingerprint(config, train_bpe(["other text"], vocab_size=300)))
    assert len(prints) == 2 + len(other)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "no manifest", "bad manifest", "other", "empty"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder, damage: str) -> None:
    """Whatever is wrong with it, the ids that come out are right and the cache is whole afterwards."""
    config = _config(text_folder(25))
    first = prepare_shards(config, tokenizer, tmp_path / "cache")
    expected, directory, fingerprint = _ids(first.train[0]), first.directory, first.fingerprint
    del first  # a mapped file must neither shrink nor, on Windows, be removed
    _damage(directory, damage)
    assert open_prepared(directory, fingerprint) is None
    again = prepare_shards(config, tokenizer, tmp_path / "cache")
    assert not again.reused
    assert _ids(again.train[0]) == expected
    assert prepare_shards(config, tokenizer, tmp_path / "cache").reused
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [directory.name]


def _damage(directory: Path, damage: str) -> None:
    tokens, manifest = directory / "train.tokens.bin", directory / "MANIFEST.json"
    content = bytearray(tokens.read_bytes())
    tokens.unlink()
    content[len(content) // 2] ^= 1
    if damage == "cut":
        tokens.write_bytes(content[:-2])
    elif damage in ("flip", "no manifest", "bad manifest"):
        tokens.write_bytes(content)
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "bad manifest":
        manifest.write_text("{")
    elif damage == "other":
        (directory / "meta.json").write_text("{}")
    elif damage == "empty":
        for path in directory.iterdir():
            path.unlink()


_KILLED = """
import sys
from pathlib import Path
from llmt.config.data import DataConfig
from llmt.data.prepare import fingerprint_data, prepare_shards
from llmt.tokenizers.bpe import train_bpe

def stop(size, documents):
    if documents >= int(sys.argv[3]):
        print("ready", flush=True)
        sys.stdin.read()

config = DataConfig(sources=(sys.argv[1],), block_size=16)
tokenizer = train_bpe(["a few words to train on"], vocab_size=300)
prepare_shards(config, tokenizer, Path(sys.argv[2]), progress=stop)
"""


@pytest.mark.parametrize("after", [1, 1200])
def test_a_killed_process_leaves_no_usable_half(tmp_path: Path, after: int) -> None:
    """kill -9 in the middle: nothing is published, and the next run gives what an undisturbed one gives."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"words of row {number}"}) for number in range(1500)))
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", _KILLED, str(path), str(cache), str(after)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    left = list(cache.iterdir())
    assert [folder.name.startswith(".tmp-") for folder in left] == [True]
    tokenizer = train_bpe(["a few words to train on"], vocab_size=300)
    config = _config(path)
    assert open_prepared(cache / _fingerprint(config, tokenizer)[:16], _fingerprint(config, tokenizer)) is None
    resumed = prepare_shards(config, tokenizer, cache)
    assert not resumed.reused
    assert _ids(resumed.train[0]) == _ids(prepare_shards(config, tokenizer, tmp_path / "other").train[0])


def test_what_was_abandoned_a_day_ago_is_removed(tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder) -> None:
    """What is being written now stays."""
    cache = tmp_path / "cache"
    for name, age in ((".tmp-old", 2 * 24 * 3600.0), (".tmp-new", 60.0)):
        (cache / name).mkdir(parents=True)
        (cache / name / "train.tokens.bin").write_bytes(b"12")
        then = time.time() - age
        for path in (cache / name / "train.tokens.bin", cache / name):
            os.utime(path, (then, then))
    prepare_shards(_config(text_folder(3)), tokenizer, cache)
    assert not (cache / ".tmp-old").exists()
    assert (cache / ".tmp-new" / "train.tokens.bin").exists()


def test_nothing_to_validate_on_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A text of one character has no end that could be held out."""
    (tmp_path / "a.txt").write_text("狐")
    with pytest.raises(DataError, match=r"data\.validation_split: so little text holds out nothing"):
        prepare_shards(_config(tmp_path / "a.txt", block_size=2), tokenizer, tmp_path / "cache")


def test_nothing_left_to_train_on_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Where all that is there is held out as well."""
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "b.txt").write_text("one text")
    config = _config(tmp_path / "a.txt", validation_sources=[str(tmp_path / "b.txt")])
    with pytest.raises(DataError, match="nothing is left to train on"):
        prepare_shards(config, tokenizer, tmp_path / "cache")


def test_a_failure_leaves_the_cache_empty(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A bad byte in the last file: nothing half-written stays behind."""
    (tmp_path / "a.txt").write_text("good " * 1000)
    (tmp_path / "b.txt").write_bytes(b"bad \xff")
    with pytest.raises(DataError, match="offset 4"):
        prepare_shards(_config(tmp_path / "?.txt"), tokenizer, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """No shards are published under the fingerprint of text that they were not made from."""
    path = tmp_path / "a.txt"
    path.write_text("good " * 1000)

    def change(size: int, documents: int) -> None:
        path.write_text("evil " * 1000)

    with pytest.raises(DataError, match="changed while it was read"):
        prepare_shards(_config(path), tokenizer, tmp_path / "cache", progress=change)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_a_storage_error(
    tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder
) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StorageError, match="making the cache folder"):
        prepare_shards(_config(text_folder(3)), tokenizer, tmp_path / "cache")


def test_two_processes_may_make_the_same_shards(tmp_path: Path, tokenizer: Tokenizer, text_folder: Folder) -> None:
    """The one that comes second takes what the first one published."""
    config = _config(text_folder(3))
    inner: list[PreparedData] = []

    def other_process(size: int, documents: int) -> None:
        if not inner:
            inner.append(prepare_shards(config, tokenizer, tmp_path / "cache"))

    outer = prepare_shards(config, tokenizer, tmp_path / "cache", progress=other_process)
    assert (inner[0].reused, outer.reused) == (False, True)
    assert _ids(outer.train[0]) == _ids(inner[0].train[0])


_PREPARE = """
import sys
from pathlib import Path
from llmt.config.data import DataConfig
from llmt.data.prepare import prepare_shards
from llmt.tokenizers.bpe import train_bpe

tokenizer = train_bpe(["a few words to train on"], vocab_size=300)
sys.stdin.readline()
prepared = prepare_shards(DataConfig(sources=(sys.argv[1],), block_size=16), tokenizer, Path(sys.argv[2]))
print(prepared.fingerprint, prepared.train[0].targets, prepared.text.tokens)
"""


def test_two_real_processes_prepare_the_same_text(tmp_path: Path) -> None:
    """Started together, both end well, with one folder between them."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"words of row {number}"}) for number in range(4_000)))
    command = [sys.executable, "-c", _PREPARE, str(path), str(tmp_path / "cache")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    time.sleep(1.5)  # both have imported what they need, or nearly so
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] != ""
    (folder,) = (tmp_path / "cache").iterdir()
    assert open_prepared(folder, said[0][0].split()[0]) is not None


def test_the_audit_counts_what_was_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Documents, bytes, repeats, lost characters, extremes and the held-out share."""
    texts = ["one two three " * 20, "äöü", "äöü", "lost \ufffd\ufffd"] + [f"text {number}" for number in range(21)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n \n")
    prepared = prepare_shards(_config(path, validation_split=0.2), tokenizer, tmp_path / "cache")
    audit, held = prepared.text, prepared.validation
    assert held is not None
    size = sum(len(text.encode()) for text in texts)
    assert (audit.documents, audit.supervised, audit.text_bytes) == (25, 0, size)
    assert audit.characters == sum(map(len, texts))
    assert (audit.shortest_bytes, audit.longest_bytes) == (6, 280)
    assert audit.duplicates == Finding(1, [f"{path}:3"])
    assert audit.replaced == Finding(2, [f"{path}:4"])
    assert audit.empty == Finding(1, [f"{path}:26"])
    assert audit.overlap == audit.bad == audit.spelled == Finding()
    assert audit.tokens == prepared.train[0].targets + held.targets
    assert audit.bytes_per_token == pytest.approx(size / audit.tokens)
    assert (audit.held_out_documents, audit.held_out_bytes) == (held.documents, held.text_bytes)
    assert prepared.train[0].text_bytes + held.text_bytes == size
    assert audit.end_of_text == 25 + 2
    assert audit.largest_id == max(max(_ids(shards)) for shards in (prepared.train[0], held))
    assert audit.formats == {str(path): "text (text)"}
    assert prepared.notes == ("20 % of the documents are held out, chosen by the hash of their text",)


def test_repeated_documents_can_be_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The first of each is kept, in both splits."""
    texts = [f"text {number % 30}" for number in range(90)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    prepared = prepare_shards(_config(path, deduplicate=True, validation_split=0.2), tokenizer, tmp_path / "cache")
    held = prepared.validation
    assert held is not None
    assert prepared.train[0].documents + held.documents == 30
    assert (prepared.text.documents, prepared.text.duplicates.count, prepared.text.deduplicated) == (90, 60, 60)
    assert prepared.text.duplicates.examples == [f"{path}:{line}" for line in (31, 32, 33)]


def test_each_source_of_a_mixture_has_shards_of_its_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """And what is held out of each is validated on together."""
    paths = []
    for name in "ab":
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(json.dumps({"text": f"{name} {number}"}) for number in range(40)))
    config = DataConfig(sources=tuple(map(str, paths)), mixture=(3, 1), block_size=16, validation_split=0.2)
    prepared = prepare_shards(config, tokenizer, tmp_path / "cache")
    held = prepared.validation
    assert held is not None
    assert sum(part.documents for part in prepared.train) + held.documents == 80
    for part, name in zip(prepared.train, "ab", strict=True):
        texts = [tokenizer.decode(part.document(number)[:-1].tolist()) for number in range(part.documents)]
        assert all(text.startswith(f"{name} ") for text in texts)
        assert part.place(0).startswith(str(tmp_path / f"{name}.jsonl"))
    assert {held.place(number)[len(str(tmp_path)) + 1] for number in range(held.documents)} == {"a", "b"}


def test_a_full_disk_publishes_nothing(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A file may grow to 100 kB and no further: the error names the folder, and nothing is left in it."""
    pytest.importorskip("resource")
    path = tmp_path / "a.txt"
    path.write_text("some words that are many\n" * 20_000)
    said = run_python(_FULL, str(path), str(tmp_path / "cache"))
    assert said.startswith("StorageError: writing token shards")
    assert list((tmp_path / "cache").iterdir()) == []


_FULL = """
import resource, signal, sys
from pathlib import Path
from llmt.config.data import DataConfig
from llmt.data.prepare import fingerprint_data, prepare_shards
from llmt.errors import StorageError
from llmt.tokenizers.bpe import train_bpe

tokenizer = train_bpe(["a few words to train on"], vocab_size=300)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare_shards(DataConfig(sources=(sys.argv[1],), block_size=16), tokenizer, Path(sys.argv[2]))
except StorageError as error:
    print(f"StorageError: {error.message}")
"""


def test_real_text_survives_the_way_to_the_disk(tmp_path: Path) -> None:
    """A novel in English and one in Japanese, decoded from the shards, are the files again."""
    data = os.environ.get("TEST_DATA_DIR")
    if not data:
        pytest.skip("TEST_DATA_DIR is not set: no real text")
    paths = [Path(data) / "botchan.txt", Path(data) / "wagahaiwa_nekodearu.ja.txt"]
    texts = [path.read_bytes().decode().removeprefix("\ufeff") for path in paths]
    tokenizer = train_bpe([text[:50_000] for text in texts], vocab_size=1000)
    config = DataConfig.model_validate({"sources": [str(path) for path in paths], "validation_split": 0})
    train = prepare_shards(config, tokenizer, tmp_path / "cache").train[0]
    decoded = [tokenizer.decode(train.document(number)[:-1].tolist()) for number in range(train.documents)]
    assert decoded == texts
    assert np.max(train.tokens) < tokenizer.vocab_size


def test_tokenizers_with_other_special_tokens_share_no_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The same tokenizer.json with another end-of-text token is another tokenizer."""
    config = _config(_rows(tmp_path / "a.jsonl", 30))
    first = prepare_shards(config, tokenizer, tmp_path / "cache")
    tokenizer.save_pretrained(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer_config.json"
    names = json.loads(path.read_text())
    path.write_text(json.dumps(names | {"eos_token": names["pad_token"]}))
    other = load_tokenizer(tmp_path / "other")
    assert other.eos_token_id != tokenizer.eos_token_id
    second = prepare_shards(config, other, tmp_path / "cache")
    assert not second.reused
    assert second.train[0].eos_token_id == other.eos_token_id
    assert first.train[0].eos_token_id == tokenizer.eos_token_id


def _rows(path: Path, count: int) -> Path:
    path.write_text("\n".join(json.dumps({"text": f"{path.stem} row {number}"}) for number in range(count)))
    return path


def test_which_name_stands_for_what_is_in_the_fingerprint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The same files divided among the sources in another way are split and mixed in another way."""
    (tmp_path / "in").mkdir()
    names = [str(_rows(tmp_path / "in" / f"{letter}.jsonl", 15)) for letter in "abc"]
    one = prepare_shards(_config(tmp_path / "in"), tokenizer, tmp_path / "cache")
    each = prepare_shards(_config(tmp_path / "in", sources=names), tokenizer, tmp_path / "cache")
    assert not each.reused
    assert [note.split(" of ")[0] for note in (*one.notes, *each.notes)] == ["5 %", "the last 10 %"]


def test_one_token_for_two_roles_is_not_unknown(tmp_path: Path) -> None:
    """In GPT-2's family one token ends texts and is named unknown too."""
    data = os.environ.get("TEST_DATA_DIR")
    if not data:
        pytest.skip("TEST_DATA_DIR is not set: no real tokenizer")
    tokenizer = load_tokenizer(Path(data) / "gpt2-tokenizer")
    assert tokenizer.unk_token_id in (None, tokenizer.eos_token_id)
    prepared = prepare_shards(_config(_rows(tmp_path / "a.jsonl", 30)), tokenizer, tmp_path / "cache")
    assert prepared.text.unknown_tokens == 0


def test_counts_are_of_documents_and_of_what_is_stored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of a long text that spells a token often one; of texts cut in two one each; bytes without what is left out."""
    text = "some words <|endoftext|>\n" * 30_000
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text(text)
    prepared = prepare_shards(_config(tmp_path / "in", deduplicate=True), tokenizer, tmp_path / "cache")
    assert (prepared.text.spelled.count, prepared.text.duplicates.count, prepared.text.deduplicated) == (2, 1, 1)
    assert prepared.text.bytes_per_token == pytest.approx(len(text) / prepared.text.tokens)


def test_the_layout_of_rows_is_noted_where_it_is_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What every document is; rows of two kinds, text beside them or a template of one's own are none."""
    asked = [{"question": f"q {n}?", "answer": f"a {n}"} for n in range(30)]
    told = [{"instruction": f"do {n}", "output": f"done {n}"} for n in range(30)]
    for name, rows in (("asked", asked), ("told", told), ("both", [{"text": "some text"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def layout(*names: str, **options: object) -> str | None:
        sources = [str(tmp_path / f"{name}.jsonl") for name in names]
        config = DataConfig.model_validate({"sources": sources, "block_size": 16} | options)
        made = prepare_shards(config, tokenizer, tmp_path / "cache").text.layout
        assert prepare_shards(config, tokenizer, tmp_path / "cache").text.layout == made  # as the cache tells it
        return made

    assert (layout("asked"), layout("told"), layout("asked", "told"), layout("asked", "both")) == (
        "question", "instruction", None, None,
    )  # fmt: skip
    assert layout("asked", prompt_template="{question} =") is None
