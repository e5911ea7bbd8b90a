"""`llmt tokenizer train`, as a user types it."""

import gzip
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

ALGORITHMS = {"bpe": (), "unigram": (), "wordpiece": (), "byte": (), "bert": ("--style", "bert")}
"""Kinds by name, and the flags besides `--algo`."""


def _flags(kind: str, size: int = 700) -> tuple[str, ...]:
    algo = "wordpiece" if kind == "bert" else kind
    wanted = () if kind == "byte" else ("--vocab-size", str(size))
    return ("--algo", algo, *ALGORITHMS[kind], *wanted)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """A text of 200 kB with many different words."""
    draw = random.Random(5)
    syllables = ["ka", "ro", "mi", "ten", "sol", "ver", "an", "du", "pel", "is"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(1500)]
    lines = [" ".join(draw.choices(words, k=12)) + ".\n" for _ in range(2000)]
    path = tmp_path / "prose.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_every_algorithm(kind: str, inside: Any, prose: Path) -> None:
    """Each writes a directory that opens, prints true numbers, and says what to type next."""
    result = inside("tokenizer", "train", "prose.txt", *_flags(kind), "-o", "made", cwd=prose.parent)
    assert result.code == 0, result.err
    assert "characters and" in result.out
    assert "held-out text" in result.out
    assert ("come back exactly" in result.out) == (kind != "bert")
    assert ("lost: spacing" in result.out) == (kind == "bert")
    assert "llmt tokenizer inspect made" in result.err
    shown = inside("tokenizer", "train", "prose.txt", *_flags(kind), "-o", "again", "--json", cwd=prose.parent)
    report = json.loads(shown.out)
    assert report["vocab_size"] == (258 if kind == "byte" else 700)
    assert f"{report['vocab_size']:,} tokens" in result.out
    assert f"{report['characters_per_token']:.2f} characters" in result.out or kind == "unigram"


def test_numbers_are_those_of_held_out_text(inside: Any, prose: Path) -> None:
    """The printed rate is what the saved tokenizer makes of the lines that training did not see."""
    from llmt.tokenizers.heldout import HeldOut
    from llmt.tokenizers.load import load_tokenizer

    done = inside("tokenizer", "train", "prose.txt", *_flags("bpe"), "-o", "made", "--json", cwd=prose.parent)
    held = HeldOut([prose.read_text(encoding="utf-8")])
    list(held)
    lines = "".join(held.kept).splitlines(keepends=True)
    tokenizer = load_tokenizer(prose.parent / "made")
    tokens = sum(map(len, tokenizer.encode_batch(lines)))
    assert json.loads(done.out)["characters_per_token"] == pytest.approx(sum(map(len, lines)) / tokens)


def test_all_kinds_of_sources_together(inside: Any, llmt: Any, prose: Path) -> None:
    """Files, folders, patterns, gzip, rows of JSON and stdin add up to one corpus, and every one is read."""
    where = prose.parent
    (where / "folder").mkdir()
    (where / "folder" / "one.md").write_text("folderword " * 300, encoding="utf-8")
    (where / "globbed-1.txt").write_text("globbedword " * 300, encoding="utf-8")
    (where / "packed.txt.gz").write_bytes(gzip.compress(b"packedword " * 300))
    (where / "rows.jsonl").write_text(json.dumps({"body": "columnword " * 300, "text": "no"}) + "\n")
    sources = ("folder", "globbed-*.txt", "packed.txt.gz", "-")
    result = llmt(*("tokenizer", "train", *sources, *_flags("bert"), "-o", "made"), cwd=where, stdin="stdinword " * 300)
    assert result.code == 0, result.err
    pieces = json.loads((where / "made" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert {"folderword", "globbedword", "packedword", "stdinword"} <= pieces.keys()
    rows = inside(
        *("tokenizer", "train", "rows.jsonl", "--text-column", "body", *_flags("bert"), "-o", "rows"), cwd=where
    )
    assert rows.code == 0, rows.err
    assert "columnword" in json.loads((where / "rows" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


def test_max_samples_reads_no_more(inside: Any, tmp_path: Path) -> None:
    """Documents after the first so many do not count."""
    rows = [{"text": f"early{n % 7}word " * 40} for n in range(10)] + [{"text": "lateword " * 400}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = ("rows.jsonl", "--algo", "wordpiece", "--style", "bert", "--vocab-size", "400")
    for number, found in (("10", False), ("11", True)):
        result = inside("tokenizer", "train", *flags, "--max-samples", number, "-o", number, cwd=tmp_path)
        assert result.code == 0, result.err
        vocabulary = json.loads((tmp_path / number / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        assert ("lateword" in vocabulary) is found


WORDPIECE = {
    "score": ("--score", "gain"),
    "threshold": ("--threshold", "fixed"),
    "style": ("--style", "bert"),
    "prefix": ("--continuation-prefix", "@@"),
    "length": ("--max-subword-length", "3"),
    "frequency": ("--min-frequency", "4000"),
    "alphabet": ("--style", "bert", "--limit-alphabet", "9"),
}


@pytest.mark.parametrize("option", WORDPIECE)
def test_each_option_changes_the_tokenizer(option: str, inside: Any, prose: Path) -> None:
    """No option of WordPiece is read and forgotten, and the record names it."""
    where = prose.parent
    base = ("--style", "bert") if option == "alphabet" else ()
    made = {}
    for name, flags in (("plain", base), ("other", WORDPIECE[option])):
        result = inside(
            *("tokenizer", "train", "prose.txt", "--algo", "wordpiece", "--vocab-size", "650", *flags, "-o", name),
            cwd=where,
        )
        assert result.code == 0, result.err
        made[name] = (where / name / "tokenizer.json").read_bytes()
    assert made["plain"] != made["other"]
    record = json.loads((where / "other" / "training.json").read_text(encoding="utf-8"))
    said = {**record["options"], **record}
    assert str(said[WORDPIECE[option][-2][2:].replace("-", "_")]) == WORDPIECE[option][-1]


def test_the_same_on_every_run(llmt: Any, prose: Path) -> None:
    """Hash seeds and the number of processes leave tokenizer.json as it is, byte for byte."""
    digests = set()
    for seed, processes in ((1, 1), (2, 2), (3, 1)):
        result = llmt(
            *("tokenizer", "train", "prose.txt", *_flags("wordpiece"), "--num-proc", str(processes)),
            *("-o", f"made-{seed}"),
            cwd=prose.parent,
            env={"PYTHONHASHSEED": str(seed)},
        )
        assert result.code == 0, result.err
        digests.add(hashlib.sha256((prose.parent / f"made-{seed}" / "tokenizer.json").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_nothing_heavy_is_imported(environment: Mapping[str, str], prose: Path) -> None:
    """Training a tokenizer needs no torch, no datasets and no peft."""
    program = (
        "import sys; from llmt.cli.app import run; "
        "code = run(['tokenizer', 'train', 'prose.txt', '--algo', 'wordpiece', '--vocab-size', '600', '-o', 'made']); "
        "print(code, sorted({'torch', 'datasets', 'peft', 'accelerate'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=prose.parent, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


BAD = {
    "empty": (b"", "empty.txt", 3, "no text"),
    "white space": (b" \n\t \n", "empty.txt", 3, "no text"),
    "not UTF-8": (b"fine \xff", "bad.txt", 3, "offset 5"),
    "UTF-16": ("text".encode("utf-16"), "bad.txt", 3, "UTF-16"),
    "NUL": (b"text \x00 text", "bad.txt", 3, "0x00"),
    "half a surrogate": (b'{"text": "\\ud800"}\n', "bad.jsonl", 3, "surrogate"),
    "no column": (b'{"body": "x"}\n', "bad.jsonl", 3, "body"),
    "no gzip": (b"this is no gzip file", "bad.txt.gz", 3, "gzip"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text(case: str, inside: Any, tmp_path: Path) -> None:
    """Text that cannot be learnt from ends with exit code 3, its place and a hint; nothing is written."""
    content, name, code, said = BAD[case]
    (tmp_path / name).write_bytes(content)
    result = inside("tokenizer", "train", name, "--algo", "wordpiece", "-o", "made", cwd=tmp_path)
    assert result.code == code, result.err
    assert said in result.err
    assert name in result.err
    assert "hint:" in result.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_too_small_a_vocabulary(inside: Any, prose: Path) -> None:
    """Exit code 2 with the least size that works; in style bert also with the alphabet that fits."""
    result = inside("tokenizer", "train", "prose.txt", *_flags("wordpiece", 100), "-o", "made", cwd=prose.parent)
    assert result.code == 2
    assert "517" in result.err
    result = inside("tokenizer", "train", "prose.txt", *_flags("bert", 25), "-o", "made", cwd=prose.parent)
    assert result.code == 2
    assert "--limit-alphabet 10" in result.err
    flags = ("--limit-alphabet", "10", "-o", "made")
    assert inside("tokenizer", "train", "prose.txt", *_flags("bert", 25), *flags, cwd=prose.parent).code == 0


def test_a_corpus_full_of_signs_that_mean_something(inside: Any, tmp_path: Path) -> None:
    """Prefix signs, names of special tokens and a byte order mark in the text are text."""
    text = "\ufeff# ## ### ##a #define a##b [SEP] [UNK] [PAD] <|endoftext|> <|pad|> the end\n" * 400
    (tmp_path / "signs.txt").write_text(text, encoding="utf-8")
    for kind in ALGORITHMS:
        result = inside("tokenizer", "train", "signs.txt", *_flags(kind, 560), "-o", kind, cwd=tmp_path)
        assert result.code == 0, (kind, result.err)
        assert ("come back exactly" in result.out) == (kind != "bert")


def test_a_special_token_is_never_learnt(inside: Any, tmp_path: Path) -> None:
    """However often `[SEP]` stands in the text, its id comes from nothing but the end of a document."""
    from llmt.tokenizers.load import load_tokenizer

    (tmp_path / "text.txt").write_text("[SEP] [SEP][SEP] " * 2000, encoding="utf-8")
    for kind in ("wordpiece", "bert"):
        assert inside("tokenizer", "train", "text.txt", *_flags(kind, 600), "-o", kind, cwd=tmp_path).code == 0
        tokenizer = load_tokenizer(tmp_path / kind)
        assert tokenizer.eos_token_id not in tokenizer.encode("[SEP] [SEP]")
        assert tokenizer.encode("[SEP]", add_special_tokens=True)[-1] == tokenizer.eos_token_id


def test_stopped_by_ctrl_c(environment: Mapping[str, str], tmp_path: Path) -> None:
    """An interrupt while training ends with 130 and leaves nothing behind, workers included."""
    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = " ".join("".join(draw.choices(letters, k=draw.randint(3, 12))) for _ in range(1_200_000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "llmt", "tokenizer", "train", "text.txt", "--algo", "wordpiece", "--num-proc", "2"],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    workers: list[psutil.Process] = []
    while not workers and process.poll() is None:
        workers = psutil.Process(process.pid).children()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert workers
    # One that was just being started reads the end of its input, and goes.
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith((".", "token"))] in ([], ["tokenizers"])


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--algo", "bpe", "--vocab-size", "1000000000000"), 2),
        (("--algo", "wordpiece", "--max-subword-length", "200000"), 2),
        (("--algo", "byte", "-o", "."), 2),
        (("--algo", "byte", "-o", "prose.txt/made"), 6),
        (("--algo", "byte", "--dataset-config", "none"), 2),
        (("--algo", "byte", "--dataset-split", "none"), 2),
    ],
)
def test_what_cannot_be(flags: tuple[str, ...], code: int, inside: Any, prose: Path) -> None:
    """Sizes without bounds, targets that cannot be written, choices that no source has: refused before any work."""
    result = inside("tokenizer", "train", "prose.txt", *flags, cwd=prose.parent)
    assert result.code == code, result.err
    assert "hint:" in result.err
    assert [path.name for path in prose.parent.iterdir()] == ["prose.txt"]


def test_flags_of_other_algorithms_are_refused(inside: Any, prose: Path) -> None:
    """A flag that would not be read is an error, not a silence."""
    for flags in (("--algo", "bpe", "--style", "bert"), ("--algo", "byte", "--vocab-size", "300"),
                  ("--algo", "unigram", "--min-frequency", "3"), ("--algo", "bpe", "--num-proc", "2")):  # fmt: skip
        result = inside("tokenizer", "train", "prose.txt", *flags, cwd=prose.parent)
        assert result.code == 2
        assert "does not read it" in result.err
