"""`llmt data`, and text of every kind through `llmt train`."""

import io
import json
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from llmt.cli.app import run

BYTES = ("--tokenizer", "byte", "--block-size", "64")
ASKED = [
    {"question": f"What is {number} and {number}?", "answer": f"It is {2 * number}. " * (number % 3 + 1)}
    for number in range(60)
]


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _audit(inside: Any, *arguments: str) -> dict[str, Any]:
    result = inside("data", "audit", "--json", *arguments)
    assert result.code == 0, result.err
    values: dict[str, Any] = json.loads(result.out)
    return values


def test_prepare_makes_what_train_uses(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The second time, and a run with the same settings, find it there."""
    _lines(tmp_path / "a.jsonl", ASKED)
    first = inside("data", "prepare", "--data", "a.jsonl", *BYTES, "--json")
    assert first.code == 0, first.err
    values = json.loads(first.out)
    assert (values["reused"], values["documents"], values["packing"]) == (False, 60, "best_fit")
    assert Path(values["directory"], "MANIFEST.json").is_file()
    again = json.loads(inside("data", "prepare", "--data", "a.jsonl", *BYTES, "--json").out)
    trained, *notes = values.pop("notes")
    assert trained == "byte tokenizer trained on the training text"
    assert again.pop("notes") == ["byte tokenizer from the cache", *notes]
    assert again == {**values, "reused": True}
    said = inside("data", "prepare", "--data", "a.jsonl", *BYTES)
    assert said.out.startswith("there already: 60 documents, ")
    assert "a.jsonl: instruction (question, answer)" in said.err
    plan = inside("train", "quickstart", "--data", "a.jsonl", *tiny, *BYTES, "--plan", "--json")
    assert plan.code == 0, plan.err
    assert set(notes) <= set(json.loads(plan.out)["notes"])


def test_inspect_shows_what_is_learnt(inside: Any, tmp_path: Path) -> None:
    """Prompts are read, answers learnt, and the numbers of the rows are those of training."""
    _lines(tmp_path / "a.jsonl", ASKED)
    arguments = ("--data", "a.jsonl", *BYTES)
    result = inside("data", "inspect", *arguments, "--rows", "2", "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [row["sample"] for row in rows] == [0, 1]
    for row in rows:
        kinds = {stretch["kind"] for stretch in row["stretches"]}
        assert {"start", "masked", "trained"} <= kinds
        for stretch in row["stretches"]:
            assert stretch["text"].startswith("Question: ") == (stretch["kind"] == "masked")
            assert stretch["text"].startswith(" It is") == (stretch["kind"] == "trained")
    shifted = json.loads(inside("data", "inspect", *arguments, "--start", "1", "--rows", "1", "--json").out)["rows"]
    assert shifted == rows[1:]
    other = json.loads(inside("data", "inspect", *arguments, "--seed", "7", "--rows", "2", "--json").out)["rows"]
    assert other != rows
    held = json.loads(inside("data", "inspect", *arguments, "--validation", "--rows", "1000", "--json").out)["rows"]
    assert 0 < len(held) < 20
    plain = inside("data", "inspect", *arguments, "--rows", "1")
    assert "sample 0: sequence " in plain.out
    assert "a.jsonl:" in plain.out
    assert '"Question: What is' in plain.out
    everything = json.loads(inside("data", "inspect", *arguments, "--train-on-prompt", "--json").out)["rows"]
    assert not any(stretch["kind"] == "masked" for row in everything for stretch in row["stretches"])
    assert inside("data", "inspect", *arguments, "--validation", "--start", "999").code == 2
    assert inside("data", "inspect", *arguments, "--validation", "--validation-split", "0").code == 2


def test_inspect_colours_what_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """On a terminal: answers green, prompts yellow, the rest dim; nothing in a text can send a control sequence."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    _lines(tmp_path / "a.jsonl", [{"question": f"{n}\x1b[2J?", "answer": "so [red]it[/red] is"} for n in range(30)])
    for name in [name for name in os.environ if name.startswith(("LLMT_", "COLUMNS", "NO_COLOR", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["data", "inspect", "--data", "a.jsonl", *BYTES, "--packing", "none", "--rows", "1"]) == 0
    shown = stream.getvalue()
    assert "\x1b[32m so [red]it[/red] is<|endoftext|>\x1b[0m" in shown
    assert re.search(r"\x1b\[33mQuestion: \d+\\x1b\[2J\?\x1b\[0m\n\x1b\[33mAnswer:\x1b\[0m", shown)
    assert re.search(r"\x1b\[2m \[\d+ of padding\]\x1b\[0m", shown)
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", shown)


def test_the_audit_is_printed_and_kept(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """As a table, as JSON, in a file, and beside the run."""
    _lines(tmp_path / "a.jsonl", ASKED)
    values = _audit(inside, "--data", "a.jsonl", *BYTES)
    total = values["trained"] + values["masked"] + values["dropped"] + values["truncated"]
    assert total == values["tokens"]
    shown = inside("data", "audit", "--data", "a.jsonl", *BYTES, "--output", "found/audit.json")
    assert shown.code == 0
    assert f"{values['tokens']:,}" in shown.out
    assert json.loads((tmp_path / "found" / "audit.json").read_text()) == values
    run = inside("train", "quickstart", "--data", "a.jsonl", *tiny, *BYTES, "--max-steps", "2", "--name", "r")
    assert run.code == 0, run.err
    kept = json.loads((tmp_path / "runs" / "r" / "audit.json").read_text())
    record = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())
    assert (record["data_documents"], record["data_masked"]) == (60, values["masked"])
    assert record["data_tokens"] == values["tokens"]
    assert {key: kept[key] for key in values if key != "notes"} == {k: v for k, v in values.items() if k != "notes"}


Planted = tuple[list[Any], tuple[str, ...], Callable[[dict[str, Any]], bool], str]


def _words(number: int) -> str:
    return f"row {number}: " + " ".join(random.Random(number).choices(("sea", "ship", "wind", "bird", "stone"), k=9))


GOOD: list[Any] = [{"text": _words(number)} for number in range(60)]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
DEFECTS: dict[str, Planted] = {
    "a repeated document": (
        [*GOOD, GOOD[7]], (), lambda a: a["duplicates"] == {"count": 1, "examples": ["a.jsonl:61"]}, "max_duplicates"
    ),
    "a document that is cut off": (
        [*ASKED, {"question": "Why?", "answer": "x" * 200}], ("--truncation", "truncate"),
        lambda a: "a.jsonl:61" in a["truncated_documents"]["examples"][-1:] or a["truncated"] > 140, "max_truncated"
    ),
    "a document that is left out": (
        [{"question": "Why?", "answer": "x" * 200}, *({"question": "?", "answer": str(n)} for n in range(60))],
        ("--truncation", "drop"),
        lambda a: a["dropped_documents"] == {"count": 1, "examples": ["a.jsonl:1"]}, "max_dropped"
    ),
    "a row of which nothing is learnt": (
        [*({"question": "?", "answer": str(n)} for n in range(60)), {"question": "why? " * 30, "answer": "so"}], (),
        lambda a: a["all_masked"]["examples"][:1] == ["a.jsonl:61"], "max_dropped"
    ),
    "a row without text": (
        [*GOOD, {"text": " "}], (), lambda a: a["empty"] == {"count": 1, "examples": ["a.jsonl:61"]}, ""
    ),
    "text that was decoded badly": (
        [*GOOD, {"text": "caf\ufffd"}], (), lambda a: a["replaced"] == {"count": 1, "examples": ["a.jsonl:61"]}, ""
    ),
    "a text that spells a control token": (
        [*GOOD, {"text": "the end<|endoftext|>"}], (),
        lambda a: a["spelled"] == {"count": 1, "examples": ["a.jsonl:61"]} and a["end_of_text_inside"] == 0, ""
    ),
    "a row that cannot be read": (
        [*GOOD, "no object"], ("--skip-bad", "1"),
        lambda a: a["bad"]["count"] == 1 and a["bad"]["examples"][0].startswith("a.jsonl:61: "), ""
    ),
    "an answer that is empty": (
        [*ASKED, {"question": "Why?", "answer": " "}], ("--skip-bad", "1"),
        lambda a: a["bad"]["examples"] == ["a.jsonl:61: field 'answer' is empty, so there is nothing to learn"], ""
    ),
    "a conversation without an answer": (
        [*({"messages": [{**TALK[0], "content": f"hi {n}"}, TALK[1]]} for n in range(60)), {"messages": TALK[:1]}],
        ("--skip-bad", "1"), lambda a: [m[:12] for m in a["bad"]["examples"]] == ["a.jsonl:61: "], ""
    ),
    "a field of another type": (
        [*GOOD, {"text": 5}], ("--skip-bad", "1"),
        lambda a: a["bad"]["examples"] == ["a.jsonl:61: field 'text' is int, not text"], ""
    ),
    "a held-out document that is trained on": (
        GOOD, ("--validation-sources", "held.jsonl"),
        lambda a: a["overlap"] == {"count": 1, "examples": ["a.jsonl:4"]} and a["overlap_share"] == 0.5, "max_overlap"
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defects_are_found(inside: Any, tmp_path: Path, defect: str) -> None:
    """Each with its place; a clean text has none of them, and a budget makes it an error that names the place."""
    rows, flags, is_found, budget = DEFECTS[defect]
    _lines(tmp_path / "held.jsonl", [GOOD[3], {"text": "something else"}])
    _lines(tmp_path / "a.jsonl", rows)
    arguments = ("--data", "a.jsonl", *BYTES, *flags)
    assert is_found(_audit(inside, *arguments))
    shown = inside("data", "audit", *arguments)
    assert "a.jsonl:" in shown.out
    if budget:
        allowed = inside("data", "audit", *arguments, f"--{budget.replace('_', '-')}", "1")
        assert allowed.code == 0, allowed.err
        refused = inside("data", "audit", *arguments, f"--{budget.replace('_', '-')}", "0")
        assert refused.code == 3
        assert refused.err.splitlines()[-2].startswith(f"error: data.{budget}: ")
        assert refused.err.splitlines()[-1].startswith("hint: ")
    _lines(tmp_path / "clean.jsonl", GOOD)
    clean = _audit(inside, "--data", "clean.jsonl", *BYTES)
    assert not is_found(clean)


@pytest.mark.parametrize("name", ["gsm8k-train.jsonl", "tinyshakespeare.txt", "wagahaiwa_nekodearu.ja.txt"])
def test_real_text_is_trained_on(inside: Any, tiny: tuple[str, ...], tmp_path: Path, name: str) -> None:
    """Questions, a play and a Japanese novel, by the same path, to a number that `eval` finds again."""
    data = os.environ.get("TEST_DATA_DIR")
    if not data:
        pytest.skip("TEST_DATA_DIR is not set: no real text")
    source = ("--data", f"{data}/{name}", "--validation-split", "0.01", "--max-samples", "300")
    flags = ("--max-steps", "2", "--eval-batches", "4", "--name", "r")
    result = inside("train", "quickstart", *source, *tiny, *flags)
    assert result.code == 0, result.err
    audit = json.loads((tmp_path / "runs" / "r" / "audit.json").read_text())
    assert audit["trained"] + audit["masked"] + audit["dropped"] + audit["truncated"] == audit["tokens"]
    assert (audit["masked"] > 0) == name.startswith("gsm8k")
    assert audit["documents"] == (300 if name.startswith("gsm8k") else 1)
    loss = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())["validation_loss"]
    assert abs(json.loads(inside("eval", "runs/r", "--json").out)["loss"] - loss) < 1e-5


def test_unknown_tokens_are_found(inside: Any, tmp_path: Path) -> None:
    """A tokenizer that cannot spell the text: counted, and a budget refuses it."""
    _lines(tmp_path / "a.jsonl", [*GOOD, {"text": "吾輩は猫である"}])
    _lines(tmp_path / "words.jsonl", GOOD)
    arguments = ("--algo", "wordpiece", "--style", "bert", "--vocab-size", "120", "-o", "tok")
    trained = inside("tokenizer", "train", "words.jsonl", *arguments)
    assert trained.code == 0, trained.err
    audit = ("--data", "a.jsonl", "--tokenizer", "tok", "--block-size", "32")
    assert _audit(inside, *audit)["unknown_tokens"] >= 1
    assert _audit(inside, "--data", "words.jsonl", *audit[2:])["unknown_tokens"] == 0
    refused = inside("data", "audit", *audit, "--max-unknown", "0")
    assert refused.code == 3
    assert "of the tokens are unknown" in refused.err


def test_a_source_that_changes_is_found(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A run does not go on with other text than it began with, and is not measured on it."""
    path = _lines(tmp_path / "a.jsonl", GOOD)
    arguments = ("--data", "a.jsonl", *tiny, *BYTES, "--save-steps", "1")
    assert inside("train", "quickstart", *arguments, "--name", "r", "--max-steps", "2").code == 0
    before = path.stat()
    path.write_text(path.read_text().replace("sea", "SEA"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert inside("eval", "runs/r").code == 5
    resumed = inside("train", "runs/r", "--resume", "--max-steps", "3")
    assert resumed.code == 5
    assert "text" in resumed.err or "data" in resumed.err


def _table(path: Path, rows: list[Any]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "flags", "note"),
    [
        ("a.csv", (), "a.csv: instruction (question, answer)"),
        ("a.parquet", ("--columns", "prompt=question,completion=answer"), "a.parquet: instruction (question, answer)"),
        ("a.json", ("--prompt-template", "Q: {question} A:", "--columns", "completion=answer"), "a.json: instruction"),
        ("a.jsonl", ("--text-column", "answer"), "a.jsonl: text (answer)"),
        ("talk.jsonl", (), "talk.jsonl: conversation (messages)"),
        ("shared.json", (), "shared.json: conversation (conversations)"),
    ],
)
def test_every_kind_of_rows_is_trained_on(
    inside: Any, tiny: tuple[str, ...], tmp_path: Path, name: str, flags: tuple[str, ...], note: str
) -> None:
    """Recognised, said in the plan, learnt, and measured alike by `eval`."""
    path = tmp_path / name
    if name == "a.csv":
        path.write_text("question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ASKED))
    elif name == "a.parquet":
        _table(path, ASKED)
    elif name == "a.json":
        path.write_text(json.dumps(ASKED))
    elif name == "a.jsonl":
        _lines(path, ASKED)
    elif name == "talk.jsonl":
        _lines(path, [{"messages": [{**TALK[0], "content": f"hi {n}"}, TALK[1]]} for n in range(60)])
    else:
        turns = [[{"from": "human", "value": f"hi {n}"}, {"from": "gpt", "value": "hello"}] for n in range(60)]
        path.write_text(json.dumps([{"conversations": talk} for talk in turns]))
    arguments = ("quickstart", "--data", name, *tiny, *BYTES, *flags, "--max-steps", "2", "--name", "r")
    result = inside("train", *arguments)
    assert result.code == 0, result.err
    assert note in result.err
    loss = json.loads((tmp_path / "runs" / "r" / "result.json").read_text())["validation_loss"]
    assert abs(json.loads(inside("eval", "runs/r", "--json").out)["loss"] - loss) < 1e-6
    whole = json.loads(inside("eval", "runs/r", "--data", name, "--json").out)
    assert whole["tokens"] > 0


def test_a_model_keeps_the_template_of_its_conversations(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The default one or that of a file: transformers finds it beside the model, and a resume takes it."""
    from transformers import AutoTokenizer

    _lines(tmp_path / "talk.jsonl", [{"messages": [{**TALK[0], "content": f"hi {n}"}, TALK[1]]} for n in range(60)])
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "plain.jinja").write_text(plain)
    for flags, said in (((), "<|im_start|>user\nhi<|im_end|>\n"), (("--chat-template", "plain.jinja"), "user: hi\n")):
        name = f"r{len(flags)}"
        arguments = ("quickstart", "--data", "talk.jsonl", *tiny, *BYTES, *flags, "--save-steps", "1", "--name", name)
        result = inside("train", *arguments, "--max-steps", "1")
        assert result.code == 0, result.err
        theirs = AutoTokenizer.from_pretrained(tmp_path / "runs" / name)
        assert theirs.apply_chat_template([TALK[0], TALK[1]], tokenize=False).startswith(said)
        resumed = inside("train", f"runs/{name}", "--resume", "--max-steps", "2")
        assert resumed.code == 0, resumed.err


def test_standard_input_is_trained_on(llmt: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A text through a pipe, once for the tokenizer and again for the ids."""
    text = "".join(f"{_words(number)}\n" for number in range(400))
    arguments = ("quickstart", "--data", "-", *tiny, "--block-size", "32", "--max-steps", "2", "--vocab-size", "300")
    result = llmt("train", *arguments, "--json", cwd=tmp_path, stdin=text)
    assert result.code == 0, result.err
    assert json.loads(result.out)["validation"]["tokens"] > 10


def test_a_stream_is_trained_on_and_resumed(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Bit for bit as if it had not stopped, over several files; `eval` finds the number of the run."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        _lines(tmp_path / "in" / f"{number}.jsonl", [{"text": _words(10 * number + row)} for row in range(10)])
    _lines(tmp_path / "held.jsonl", GOOD[:5])
    stream = ("--data", "in", "--streaming", "--validation-sources", "held.jsonl")
    common = ("quickstart", *stream, *tiny, *BYTES, "--save-steps", "2", "--eval-steps", "2")
    common += ("--lr-scheduler-type", "constant", "--warmup-steps", "0")  # which do not depend on the number of steps
    for name, steps in (("whole", "12"), ("halves", "6")):
        result = inside("train", *common, "--name", name, "--max-steps", steps)
        assert result.code == 0, result.err
        assert "streamed from in" in result.err
    resumed = inside("train", "runs/halves", "--resume", "--max-steps", "12")
    assert resumed.code == 0, resumed.err
    assert "not the same" not in resumed.err
    weights = [(tmp_path / "runs" / name / "checkpoint-12" / "model.safetensors") for name in ("whole", "halves")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    states = [json.loads((path.parent / "state.json").read_text()) for path in weights]
    assert states[0]["stream"] == states[1]["stream"]
    assert states[0]["stream"]["passes"] >= 1
    loss = json.loads((tmp_path / "runs" / "whole" / "result.json").read_text())["validation_loss"]
    assert abs(json.loads(inside("eval", "runs/whole", "--json").out)["loss"] - loss) < 1e-6
    with (tmp_path / "in" / "0.jsonl").open("a") as file:
        file.write(json.dumps({"text": "more"}) + "\n")
    assert inside("train", "runs/halves", "--resume", "--max-steps", "14").code == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--max-steps", "2"), "streaming holds nothing out by itself"),
        (("--validation-split", "0", "--mixture", "1"), "streaming and mixture"),
        (("--validation-split", "0", "--max-dropped", "0.1"), "streaming and max_dropped"),
        (("--validation-split", "0", "--packing", "best_fit"), "streaming and packing"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(inside: Any, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    """Before anything is read."""
    _lines(tmp_path / "a.jsonl", GOOD)
    result = inside("train", "quickstart", "--data", "a.jsonl", "--streaming", *BYTES, *flags)
    assert result.code == 2
    assert said in result.err


def test_a_stream_needs_a_tokenizer_and_an_end(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """And is not shown by the commands for prepared text."""
    _lines(tmp_path / "a.jsonl", GOOD)
    stream = ("--data", "a.jsonl", "--streaming", "--validation-split", "0")
    result = inside("train", "quickstart", *stream, *tiny, "--plan")
    assert result.code == 2
    assert "would read all of the text first" in result.err
    endless = ("--set", "training.max_steps=null")
    result = inside("train", "quickstart", *stream, *tiny, *BYTES, *endless, "--plan")
    assert result.code == 2
    assert "how long a stream is, is not known" in result.err
    for command in ("prepare", "inspect", "audit"):
        result = inside("data", command, *stream, *BYTES)
        assert result.code == 2
        assert "--no-streaming" in result.err


def test_eval_reads_a_column_that_it_is_told(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """As plain text, whatever the run read; and rows as the run read them, all of them."""
    _lines(tmp_path / "a.jsonl", ASKED)
    _lines(tmp_path / "b.jsonl", [{"prompt": "P", "completion": "C", "body": _words(n)} for n in range(20)])
    flags = ("--format", "instruction", "--truncation", "truncate", "--max-steps", "1", "--name", "r")
    result = inside("train", "quickstart", "--data", "a.jsonl", *tiny, *BYTES, *flags)
    assert result.code == 0, result.err
    told = inside("eval", "runs/r", "--data", "b.jsonl", "--text-column", "body", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["tokens"] == sum(len(_words(n)) + 1 for n in range(20))
    assert json.loads(inside("eval", "runs/r", "--data", "b.jsonl", "--json").out)["tokens"] == 20 * 2


def test_a_mixture_is_trained_on(inside: Any, tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Two sources by weight; their number has to fit."""
    _lines(tmp_path / "a.jsonl", GOOD)
    _lines(tmp_path / "b.jsonl", ASKED)
    sources = ("--data", "a.jsonl", "--data", "b.jsonl", *BYTES)
    result = inside("data", "inspect", *sources, "--mixture", "1,3", "--rows", "400", "--json")
    assert result.code == 0, result.err
    drawn = [row["part"] for row in json.loads(result.out)["rows"]]
    assert (drawn.count(0), drawn.count(1)) == (100, 300)
    said = inside("data", "prepare", *sources, "--mixture", "1,3").err
    assert "source 1: 25.0 % of the sequences, gone through " in said
    assert "source 2: 75.0 % of the sequences, gone through " in said
    run = inside("train", "quickstart", *sources, *tiny, "--mixture", "1,3", "--max-steps", "2", "--name", "m")
    assert run.code == 0, run.err
    assert inside("data", "audit", *sources, "--mixture", "1").code == 2
    assert inside("data", "audit", *sources, "--mixture", "0,0").code == 2


BAD: dict[str, tuple[str, bytes, tuple[str, ...], str]] = {
    "empty": ("a.txt", b"", (), "a.txt: no text in it"),
    "one token": ("a.txt", b"x", (), "data.validation_split: so little text holds out nothing"),
    "half a line": ("a.jsonl", b'{"text": "a"}\n{"text": "b', (), "a.jsonl:2:10: not JSON"),
    "a missing field": ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', (), "a.jsonl:2: no field 'text'; it has body"),
    "a field of another type": ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', (), "a.jsonl:2: field 'text' is int"),
    "bytes that are not UTF-8": ("a.txt", b"abc \xff", (), "a.txt:1: byte 0xff at offset 4 is not UTF-8"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), (), "a.txt:1: byte 0xff at offset 0 is not UTF-8: this is UTF-16"),
    "NUL": ("a.txt", b"ab\n\0c", (), "a.txt:2: byte 0x00 at offset 3"),
    "cut parquet": ("a.parquet", b"PAR1 and then nothing", (), "a.parquet: damaged, or no parquet file"),
    "a wrong column": ("a.csv", b"text,n\na,1\n", ("--text-column", "body"), "a.csv: no column 'body'; it has text, n"),
    "no assistant": (
        "a.jsonl", json.dumps({"messages": TALK[:1]}).encode(), (), "a.jsonl:1: field 'messages': no turn of the assist"
    ),
    "an unknown role": (
        "a.jsonl", json.dumps({"messages": [{"role": "narrator", "content": "x"}]}).encode(), (),
        "a.jsonl:1: field 'messages', turn 1: unknown role 'narrator'"
    ),
    "turns out of order": (
        "a.jsonl", json.dumps({"messages": TALK[::-1]}).encode(), (), "a.jsonl:1: field 'messages', turn 1: out of"
    ),
    "a template that raises": (
        "a.jsonl", json.dumps({"messages": TALK}).encode(), ("--chat-template", "raise.jinja"),
        "a.jsonl:1: raise.jinja refuses this conversation: never"
    ),
    "a template that loops": (
        "a.jsonl", json.dumps({"messages": TALK}).encode(), ("--chat-template", "loop.jinja"),
        "a.jsonl:1: loop.jinja takes more than 2 s for this conversation"
    ),
    "parts of a data set": ("data/test.jsonl", b'{"text": "a"}\n', (), "data: data/train.jsonl and data/test.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_two_lines_that_name_it(inside: Any, tmp_path: Path, case: str) -> None:
    """Exit 3, the file with line, row or column, what to do, and nothing in the cache of shards."""
    name, content, flags, said = BAD[case]
    (tmp_path / "raise.jinja").write_text("{{ raise_exception('never') }}")
    loops = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    (tmp_path / "loop.jinja").write_text(loops)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    source = name
    if case == "parts of a data set":
        (tmp_path / "data" / "train.jsonl").write_bytes(content)
        source = "data"
    arguments = ("--data", source, *BYTES, "--cache-dir", "cache", *flags)
    for command in (("data", "prepare"), ("train", "quickstart")):
        result = inside(*command, *arguments)
        assert result.code == 3, result.err
        error, hint = result.err.splitlines()[-2:]
        assert error.startswith(f"error: {said}")
        assert hint.startswith("hint: ")
        left = [path for path in (tmp_path / "cache" / "shards").glob("*") if not path.name.startswith(".")]
        complete = [path for path in left if (path / "MANIFEST.json").is_file()]
        assert not complete or case == "one token"
