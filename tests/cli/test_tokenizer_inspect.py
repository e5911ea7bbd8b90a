"""`llmt tokenizer inspect`: what it shows, where it goes, and what it refuses."""

import io
import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import train_tokenizer

LINES = [f"the captain sailed past island {n} at night, und die Brücke war 日本 weit\n" for n in range(60)]
KINDS = {"bpe": ("bpe", 400, {}), "wordpiece": ("wordpiece", 640, {}), "bert": ("wordpiece", 300, {"style": "bert"}),
         "unigram": ("unigram", 300, {}), "byte": ("byte", 258, {})}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one saved tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, (algo, size, options) in KINDS.items():
        train_tokenizer(algo, LINES, vocab_size=size, **options).save_pretrained(folder / name)
    (folder / "text.txt").write_text("".join(LINES), encoding="utf-8")
    return folder


def values_of(inside: Any, folder: Path, *arguments: str, **more: Any) -> dict[str, Any]:
    """The JSON of an inspection."""
    result = inside("tokenizer", "inspect", *arguments, "--json", cwd=folder, **more)
    assert result.code == 0, result.err
    return dict(json.loads(result.out))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_inspected(inside: Any, tokenizers: Path, name: str) -> None:
    """The numbers are those of the tokenizer itself, and everything is shown in a pipe without an escape."""
    text = "the captain said: 123 日本!\n  and Brücke"
    tokenizer = load_tokenizer(tokenizers / name)
    ids = tokenizer.encode(text)
    values = values_of(inside, tokenizers, name, text, "--limit", "1000")
    assert [token_id for _, token_id in values["segmentation"]] == ids
    assert [part["token_id"] for part in values["segments"]] == ids
    assert (values["tokens"], values["characters"]) == (len(ids), len(text))
    assert values["characters_per_token"] == pytest.approx(len(text) / len(ids))
    assert sum(share["tokens"] for share in values["scripts"]) == len(ids)
    assert sum(share["characters"] for share in values["scripts"]) == len(text)
    vocabulary = values["vocabulary"]
    assert vocabulary["used"] + vocabulary["dead"] == tokenizer.vocab_size
    assert values["roundtrip"] is (tokenizer.decode(ids, skip_special_tokens=False) == text)
    shown = inside("tokenizer", "inspect", name, text, cwd=tokenizers)
    assert shown.code == 0, shown.err
    assert "\x1b" not in shown.out
    for title in ("Statistics", "Tokens", "Scripts", "Vocabulary", "Digits and white space"):
        assert f"\n{title}\n" in shown.out
    assert f"characters per token  {len(text) / len(ids):.3f}" in shown.out


def test_the_text_is_cut_by_bars_in_a_pipe(inside: Any, tokenizers: Path) -> None:
    """A pipe gets the text with bars between the tokens, as the first line."""
    tokenizer = load_tokenizer(tokenizers / "bpe")
    result = inside("tokenizer", "inspect", "bpe", "the captain", cwd=tokenizers)
    assert result.out.splitlines()[0] == "|".join(tokenizer.decode([i]) for i in tokenizer.encode("the captain"))
    unknown = inside("tokenizer", "inspect", "bert", "the Ж", cwd=tokenizers)
    assert unknown.out.splitlines()[0] == "the|<?Ж>"


def test_comparison_sweep_and_word(inside: Any, tokenizers: Path) -> None:
    """Any number of others stands in one table; smaller sizes and a word's merges are shown where asked."""
    arguments = (
        "bpe",
        "the captain sailed",
        "--compare",
        "wordpiece",
        "--compare",
        "bert",
        "--sweep",
        "--word",
        "sailed",
    )
    values = values_of(inside, tokenizers, *arguments)
    assert [row["name"] for row in values["comparison"]] == ["bpe", "wordpiece", "bert"]
    for row in values["comparison"]:
        tokenizer = load_tokenizer(tokenizers / row["name"])
        assert row["tokens"] == len(tokenizer.encode("the captain sailed"))
        assert row["vocab_size"] == tokenizer.vocab_size
        assert "time" not in " ".join(row)
    assert [point["vocab_size"] for point in values["sweep"]] == [258, load_tokenizer(tokenizers / "bpe").vocab_size]
    assert values["histories"][0]["word"] == "sailed"
    assert values["histories"][0]["merges"][0]["rank"] >= 1
    shown = inside("tokenizer", "inspect", *arguments, cwd=tokenizers)
    for title in ("Comparison", "Vocabulary sizes of the same training", "How sailed is built"):
        assert f"\n{title}\n" in shown.out


def test_text_comes_from_files_stdin_or_a_sample(llmt: Any, inside: Any, tokenizers: Path) -> None:
    """TEXT, `--data`, `-` and nothing at all; what was measured is named, and a part is called one."""
    whole = "".join(LINES)
    values = values_of(inside, tokenizers, "bpe", "--data", "text.txt")
    assert (values["characters"], values["source"], values["is_part"]) == (len(whole), "text.txt", False)
    part = values_of(inside, tokenizers, "bpe", "--data", "text.txt", "--max-characters", "100")
    assert (part["characters"], part["is_part"]) == (100, True)
    typed = values_of(inside, tokenizers, "bpe", "abcdef", "--max-characters", "5")
    assert (typed["characters"], typed["is_part"]) == (5, True)
    sample = values_of(inside, tokenizers, "byte", "--max-characters", "2000")
    assert (sample["characters"], sample["source"]) == (2000, "builtin")
    piped = llmt("tokenizer", "inspect", "bpe", "-", "--json", cwd=tokenizers, stdin="the captain\n")
    assert piped.code == 0, piped.err
    assert json.loads(piped.out)["characters"] == len("the captain\n")
    assert json.loads(piped.out)["source"] == "standard input"


def test_what_is_refused(inside: Any, llmt: Any, tokenizers: Path) -> None:
    """The right exit code and two lines; an answer that cannot be given says why."""
    refused = [
        (("bpe", ""), 3, "nothing in it"),
        (("bert", "  "), 3, "bert"),
        (("./nothing", "x"), 4, "nothing"),
        (("bpe", "x", "--compare", "./nowhere"), 4, "nowhere"),
        (("bpe", "  ", "--compare", "bert"), 3, "bert"),
        (("unigram", "x", "--sweep"), 2, "unigram"),
        (("byte", "x", "--sweep"), 2, "no merges"),
        (("byte", "x", "--word", "x"), 2, "ByteTokenizer"),
        (("bpe", "x", "--word", "  "), 2, "no word"),
        (("bpe", "x", "--data", "text.txt"), 2, "--data"),
        (("bpe", "--data", "none.txt"), 3, "none.txt"),
        (("bpe", "x", "--limit", "0"), 2, "limit"),
        (("bpe", "x", "--html", "."), 10, "folder"),
        (("bpe", "x", "--html", "text.txt"), 10, "text.txt"),
        (("bpe", "x", "--html", "no/page.html"), 6, "no"),
    ]  # fmt: skip
    for arguments, code, word in refused:
        result = inside("tokenizer", "inspect", *arguments, cwd=tokenizers)
        assert result.code == code, (arguments, result.err)
        assert [line.split(":")[0] for line in result.lines] == ["error", "hint"], (arguments, result.err)
        assert word in result.err, (arguments, result.err)
        assert result.out == ""
    nul = llmt("tokenizer", "inspect", "bpe", "-", cwd=tokenizers, stdin="a\x00b")
    assert nul.code == 3
    assert "0x00" in nul.err


LOADED = """
import sys
from llmt.cli.app import run
code = run(sys.argv[1:])
print(code, *sys.modules, file=sys.stderr)
"""


def test_nothing_heavy_is_loaded(llmt: Any, tokenizers: Path) -> None:
    """Looking into a tokenizer with everything asked for imports neither torch nor transformers."""
    arguments = ("bpe", "the captain", "--compare", "bert", "--sweep", "--word", "captain", "--quiet")
    result = llmt("tokenizer", "inspect", *arguments, cwd=tokenizers, program=("-c", LOADED))
    code, *modules = result.lines[-1].split()
    assert code == "0", result.err
    assert {"torch", "transformers", "datasets", "pandas"} & set(modules) == set()


def test_white_space_is_a_text(inside: Any, tokenizers: Path) -> None:
    """Spaces have tokens, where the tokenizer keeps them."""
    assert values_of(inside, tokenizers, "bpe", "  ")["roundtrip"] is True


def test_the_page_is_written(inside: Any, tokenizers: Path, tmp_path: Path) -> None:
    """`--html` writes one file and says so on stderr; a second time only with `--overwrite`; `--json` goes with it."""
    page = tmp_path / "page.html"
    arguments = ("tokenizer", "inspect", "bpe", "the <captain>", "--html", str(page))
    first = inside(*arguments, "--json", cwd=tokenizers)
    assert first.code == 0, first.err
    assert json.loads(first.out)["characters"] == 13
    assert "page.html" in first.err
    assert "&lt;" in page.read_text(encoding="utf-8")
    assert inside(*arguments, cwd=tokenizers).code == 10
    assert inside(*arguments, "--overwrite", cwd=tokenizers).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.skipif(os.name != "posix", reason="the old Windows console has colours of its own")
def test_colours_only_where_they_are_wanted(
    tokenizers: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal gets backgrounds, neighbours never the same; `NO_COLOR` gets bars; no foreign escape ever."""
    from llmt.cli.app import run

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(text: str) -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(["tokenizer", "inspect", "bpe", text]) == 0
        return stream.getvalue()

    monkeypatch.chdir(tokenizers)
    for name in [name for name in os.environ if name.startswith(("LLMT_", "COLUMNS", "NO_COLOR", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm-256color")
    tokens = re.findall(r"\x1b\[30;48;5;(\d+)m([^\x1b]*)", shown("the captain [red]x[/red] \x1b[2J日"))
    assert "".join(text for _, text in tokens).startswith("the captain [red]x[/red] \\x1b[2J")
    assert all(a[0] != b[0] for a, b in pairwise(tokens))
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", shown("the \x1b[2J\x1b]0;title\x07 \x9b31m"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;5" not in shown("the captain")
    assert "|" in shown("the captain").splitlines()[0]


@pytest.fixture(scope="module")
def novel() -> str:
    """A Japanese novel."""
    folder = os.environ.get("TEST_DATA_DIR")
    if folder is None:
        pytest.skip("TEST_DATA_DIR is not set: no Japanese text to train on")
    return (Path(folder) / "wagahaiwa_nekodearu.ja.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", KINDS)
def test_a_japanese_novel_gives_sensible_tables(inside: Any, tmp_path: Path, novel: str, name: str) -> None:
    """Kana, Han and punctuation make up the text; learnt pieces are longer than bytes; sizes only help."""
    algo, _, options = KINDS[name]
    train, held_out = novel[2_000 : 20_000 if name == "unigram" else 62_000], novel[100_000:110_000]
    size = {"bert": 5000, "unigram": 800}.get(name, 2000)
    tokenizer = train_tokenizer(algo, [train], vocab_size=size, **options)
    tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text(held_out, encoding="utf-8")
    asked = [] if name in ("unigram", "byte") else ["--sweep", "--word", "吾輩は猫である"]
    values = values_of(inside, tmp_path, name, "--data", "text.txt", *asked)
    check_novel(values, tokenizer, held_out)
    if name != "byte":
        assert values["bytes_per_token"] > 2
    if asked:
        sizes = [point["tokens"] for point in values["sweep"]]
        assert sizes == sorted(sizes, reverse=True)
        assert values["sweep"][-1]["tokens"] == values["tokens"]
        pieces = "".join(part["text"] for part in values["histories"][0]["tokens"])
        assert "猫" in pieces or "<E7>" in pieces


def check_novel(values: dict[str, Any], tokenizer: Tokenizer, text: str) -> None:
    """What holds for every kind of tokenizer."""
    shares = {share["script"]: share for share in values["scripts"]}
    assert list(shares)[:3] == ["kana", "Han", "punctuation"]
    kana = sum("\u3041" <= char <= "\u30ff" and char not in "・゠" for char in text)
    assert shares["kana"]["characters"] == kana
    assert sum(share["characters"] for share in shares.values()) == len(text)
    assert sum(share["tokens"] for share in shares.values()) == len(tokenizer.encode(text))
    assert values["roundtrip"] is tokenizer.is_lossless
    if tokenizer.is_lossless:
        assert all(share["unknown_share"] in (0, None) for share in shares.values())
        assert sum(share["covered"] for share in shares.values()) == len(text)
    assert 0 < values["vocabulary_used"] < 1
    assert values["vocabulary"]["used"] == len(set(tokenizer.encode(text)))
