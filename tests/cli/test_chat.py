"""`llmt generate --chat` and several adapters."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmt.checkpoints.atomic import staged_directory
from llmt.config.lora import LoraConfig
from llmt.config.model import ModelConfig
from llmt.data.chat import CHATML
from llmt.models.load import load_model
from llmt.models.lora import add_lora, write_adapter
from llmt.models.transformer import TransformerLM
from llmt.text.prompts import CHAT_TEMPLATES
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import train_tokenizer

posix = pytest.mark.skipif(os.name != "posix", reason="a terminal of POSIX")
ANSWERS = ("-n", "3", "--seed", "5")


@pytest.fixture(scope="module")
def talking(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, and `runs/formal` and `runs/short`: adapters with a chat template. Not to be changed."""
    where = tmp_path_factory.mktemp("talking")
    base = where / "runs" / "quickstart"
    shutil.copytree(finished[0] / "runs" / "quickstart", base)
    for seed, name in enumerate(("formal", "short")):
        adapted = add_lora(load_model(base), LoraConfig(enabled=True, r=2 + seed))
        generator = torch.Generator().manual_seed(seed)
        drawn = {n: torch.randn(t.shape, generator=generator) for n, t in adapted.adapter_weights().items()}
        tokenizer = load_tokenizer(base)
        tokenizer.keep_chat_template(CHAT_TEMPLATES["question"])
        with staged_directory(base.parent / name, extra={}) as staged:
            write_adapter(staged, adapted, base, drawn)
            tokenizer.save_pretrained(staged.path)
    return where


BOTH = ("generate", "runs/quickstart", "--adapter", "runs/formal", "--adapter", "s=runs/short")


def test_a_conversation_through_a_pipe(llmt: Any, talking: Path, tmp_path: Path) -> None:
    """Each line is a turn, each answer a line of stdout; commands are obeyed, and notes stand on stderr."""
    target = tmp_path / "said.jsonl"
    lines = (
        "hi",
        "",
        "/adapters",
        "/adapter s",
        "hi",
        "/undo",
        "/adapter base",
        "hi",
        "/help",
        "/exit",
        "x",
    )
    typed = "\n".join(lines) + "\n"
    asked = (*BOTH, "--chat", *ANSWERS, "--json", "--output", str(target))
    result = llmt(*asked, cwd=talking, stdin=typed)
    assert result.code == 0, result.err
    said = [json.loads(line) for line in result.out.splitlines()]
    assert [(item["adapter"], item["prompt"]) for item in said] == [("formal", "hi"), ("s", "hi"), ("base", "hi")]
    assert all(set(item) == {"adapter", "prompt", "text", "tokens"} and item["tokens"] <= 3 for item in said)
    kept = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert kept == [said[0], said[2]]  # the second was taken back
    for note in ("* formal  ", "  s  ", "  base  ", "s answers", "taken back: hi",
                 "base has no chat template; that of formal is taken", "let this adapter answer"):  # fmt: skip
        assert note in result.err
    assert ">" not in result.err  # no marks where nobody types


def test_only_commands_are_commands(inside: Any, talking: Path) -> None:
    """Where nobody types, all else that begins with a slash is a turn, as it stands."""
    turns = ["/what", "/etc/hosts?", "//undo", "/undo that", "/help me", "/", "/adapters x"]
    lines = [*turns, "/reset ", "/undo", "/adapter", "/exit now", " /exit "]
    result = inside("generate", "runs/formal", "--chat", *ANSWERS, "--json", cwd=talking, stdin="\n".join(lines))
    assert result.code == 0, result.err
    assert [json.loads(line)["prompt"] for line in result.out.splitlines()] == [*turns, "/exit now"]
    assert "there is nothing to take back" in result.err
    assert "/adapter: which?" in result.err


@pytest.mark.parametrize("as_json", [True, False])
def test_bytes_that_are_no_text_are_no_turn(
    talking: Path, environment: dict[str, str], tmp_path: Path, *, as_json: bool
) -> None:
    """Two lines say so, in a locale that lets them through as in one that does not, and the conversation goes on."""
    target = tmp_path / "said.jsonl"
    options = ["--chat", *ANSWERS, "--output", str(target), *(["--json"] if as_json else [])]
    done = subprocess.run(
        [sys.executable, "-m", "llmt", "generate", str(talking / "runs" / "formal"), *options],
        env={**environment, "PYTHONIOENCODING": "utf-8:strict"} if as_json else {**environment, "LC_ALL": "C"},
        input=b"hi\na\xffb\n\xc3\xa4\n", capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().splitlines()[:2] == [
        "error: standard input: a turn with bytes that are not UTF-8, which is not taken", "hint: type it as UTF-8"
    ]  # fmt: skip
    kept = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [item["prompt"] for item in kept] == ["hi", "\u00e4"]


@posix
def test_what_was_said_is_kept_however_it_ends(endless: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """By a signal within an answer, or where nobody reads the answers any more."""
    for ending in ("signal", "pipe"):
        target = tmp_path / f"{ending}.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-m", "llmt", "generate", str(endless), "--chat", "-n", "9999", "--temperature", "0",
             "--output", str(target)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.read(5) == b"\x1b" * 5
        if ending == "signal":
            process.send_signal(signal.SIGTERM)
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == {"signal": 143, "pipe": 141}[ending], said
        process.stdin.close()
        process.stderr.close()
        (kept,) = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert (kept["prompt"], set(kept["text"])) == ("hello", {"\x1b"})
        assert kept["tokens"] >= 5


def test_an_end_before_the_first_turn_leaves_the_file(inside: Any, talking: Path, tmp_path: Path) -> None:
    """A chat that cannot begin has said nothing."""
    (tmp_path / "said.jsonl").write_text("old")
    asked = ("--chat", "-n", "32", "--output", str(tmp_path / "said.jsonl"))
    assert inside("generate", "runs/formal", *asked, cwd=talking, stdin="hi\n").code == 2
    assert (tmp_path / "said.jsonl").read_text() == "old"


def test_answers_are_lines_of_stdout(inside: Any, talking: Path) -> None:
    """Without --json the same answers, and nothing else; so after a reset and with the name of the adapter alone."""
    as_json = inside(*BOTH, "--chat", *ANSWERS, "--json", cwd=talking, stdin="hi\n/reset\nho\n")
    texts = [json.loads(line)["text"] for line in as_json.out.splitlines()]
    plain = inside(*BOTH, "--chat", *ANSWERS, cwd=talking, stdin="hi\n/reset\nho")
    assert (plain.code, plain.out) == (0, "".join(text + "\n" for text in texts))
    alone = inside("generate", "runs/formal", "--chat", *ANSWERS, "--json", cwd=talking, stdin="hi\n")
    assert json.loads(alone.out) == json.loads(as_json.out.splitlines()[0])


def test_what_does_not_fit(inside: Any, talking: Path) -> None:
    """A turn that is too long is refused in two lines and the chat goes on; a full context is said once."""
    turns = ["a " * 40, "hi", "/adapter none", *"abcde"]
    result = inside("generate", "runs/formal", "--chat", *ANSWERS, cwd=talking, stdin="\n".join(turns))
    assert result.code == 0
    assert len(result.out.splitlines()) >= 6
    assert [line.split(":")[0] for line in result.lines[:4]] == ["error", "hint"] * 2
    assert "tokens alone" in result.lines[0]
    assert "there are base, formal" in result.lines[3]
    assert [line for line in result.lines if "the context is full" in line] == result.lines[4:]
    assert len(result.lines) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("runs/formal", "--chat", "-p", "hi"), 2, "--chat: the turns"),
        (("runs/formal", "--chat", "--prompts-file", "p"), 3, "p"),
        (("runs/formal", "--chat", "--num-return-sequences", "2"), 2, "one answer"),
        (("runs/formal", "--system", "S"), 2, "--system"),
        (("runs/formal", "--chat", "-n", "32"), 2, "leaves 0"),
        (("runs/quickstart", "--chat"), 4, "no chat template"),
        (("runs/quickstart", "--adapter", "runs/formal", "--adapter", "x/formal"), 2, "stands for two"),
        (("runs/quickstart", "--adapter", "base=runs/formal"), 2, "without an adapter"),
        (("runs/formal", "--adapter", "runs/short"), 4, "is an adapter itself"),
    ],
)  # fmt: skip
def test_what_cannot_be(inside: Any, talking: Path, arguments: Sequence[str], code: int, said: str) -> None:
    """Two lines: what is wrong, and what to type."""
    result = inside("generate", *arguments, cwd=talking, stdin="hi\n")
    assert (result.code, result.out) == (code, "")
    assert [line.split(":")[0] for line in result.lines] == ["error", "hint"]
    assert said in result.lines[0]


def test_each_prompt_with_each_adapter(inside: Any, talking: Path) -> None:
    """Without --chat several adapters continue each prompt in turn, as each alone does, under their names."""
    rest = ("-p", "the", "-p", "sea", "-n", "4", "--json")
    both = json.loads(inside(*BOTH, *rest, cwd=talking).out)["results"]
    assert [(item["prompt"], item["adapter"]) for item in both] == [
        ("the", "formal"), ("the", "s"), ("sea", "formal"), ("sea", "s"),
    ]  # fmt: skip
    for name, folder in (("formal", "runs/formal"), ("s", "s=runs/short")):
        alone = json.loads(inside("generate", "runs/quickstart", "--adapter", folder, *rest, cwd=talking).out)
        assert alone["results"] == [item for item in both if item["adapter"] == name]
    plain = json.loads(inside("generate", "runs/formal", *rest, cwd=talking).out)["results"]
    assert plain == [{"prompt": item["prompt"], "text": item["text"]} for item in both if item["adapter"] == "formal"]
    shown = inside(*BOTH, "-p", "the", "-n", "4", cwd=talking).out
    assert shown == "".join(f"[{item['adapter']}]\nthe{item['text']}\n" for item in both[:2])


def test_a_run_on_questions_can_be_talked_with(inside: Any, workplace: Path, tiny: tuple[str, ...]) -> None:
    """Its tokenizer keeps the template of its rows, transformers reads it, a resume finds the same data."""
    from transformers import AutoTokenizer

    rows = [{"question": f"what is {n}?", "answer": f"the number {n}"} for n in range(60)]
    (workplace / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        "--data",
        "asked.jsonl",
        "--block-size",
        "32",
        "--precision",
        "fp32",
        "--compile",
        "never",
        "--device",
        "cpu",
    )
    result = inside("train", "--lora", *flags, "--max-steps", "1", "--save-steps", "1", cwd=workplace)
    assert result.code == 0, result.err
    talk = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
    theirs = AutoTokenizer.from_pretrained(workplace / "runs" / "lora")
    assert theirs.apply_chat_template(talk, tokenize=False) == f"Question: why?\nAnswer: so{theirs.eos_token}"
    said = inside("generate", "runs/lora", "--chat", "-n", "4", "--json", cwd=workplace, stdin="what is 3?\n")
    assert (said.code, json.loads(said.out)["adapter"]) == (0, "lora")
    resumed = inside("train", "runs/lora", "--resume", "--max-steps", "2", cwd=workplace)
    assert resumed.code == 0, resumed.err


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model that says the character of escape over and over again."""
    tokenizer = train_tokenizer("byte", ["x"])
    tokenizer.keep_chat_template(CHATML)
    model = TransformerLM(
        ModelConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                    tie_word_embeddings=False), 258, 30_000,
    )  # fmt: skip
    (escape,) = tokenizer.encode("\x1b")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.0 if parameter.ndim == 2 else 1.0)
        model.state_dict()[next(name for name in model.state_dict() if "embed" in name)].fill_(1.0)
        model.output_weight()[escape] = 1.0
    model.save_pretrained(tmp_path / "endless", tokenizer=tokenizer)
    return tmp_path / "endless"


@posix
def test_slashes_in_a_terminal(endless: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """A word that is no command is said to be none; two slashes and a sentence are turns."""
    import pty

    target = tmp_path / "said.jsonl"
    child, terminal = pty.fork()
    if child == 0:
        options = ("--chat", "-n", "2", "--output", str(target))
        os.execve(sys.executable, [sys.executable, "-m", "llmt", "generate", str(endless), *options], environment)
    shown = b""
    try:
        _until(terminal, b"base> ")
        for typed in (b"/undoo\n", b"//undo\n", b"/tmp is full\n"):
            os.write(terminal, typed)
            shown += _until(terminal, b"base> ")
        os.write(terminal, b"/exit\n")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(terminal)
    assert code == 0
    assert shown.count(b"no such command; there are /adapters, ") == 1
    assert b"/undoo: no such" in shown
    kept = [json.loads(line)["prompt"] for line in target.read_text(encoding="utf-8").splitlines()]
    assert kept == ["/undo", "/tmp is full"]


def _until(terminal: int, wanted: bytes, seconds: float = 60) -> bytes:
    """What a terminal shows until these bytes come."""
    shown, end = b"", time.monotonic() + seconds
    while wanted not in shown:
        assert time.monotonic() < end, shown[-500:]
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536)
    return shown


@posix
def test_ctrl_c_in_a_terminal(endless: Path, environment: dict[str, str]) -> None:
    """It stops an answer and keeps the chat; at the prompt it ends with 130. No control character is ever shown."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        options = ("--chat", "-n", "25000", "--temperature", "0")
        os.execve(sys.executable, [sys.executable, "-m", "llmt", "generate", str(endless), *options], environment)
    try:
        shown = _until(terminal, b"base> ")
        for typed, answer in ((b"hello\n", b"\\x1b\\x1b\\x1b"), (b"\x03", b"base> "), (b"/undo\n", b"base> ")):
            os.write(terminal, typed)
            shown += _until(terminal, answer)
        os.write(terminal, b"\x03")
        ended = _until(terminal, b"hint: ")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(terminal)
    assert (code, b"stopped" in ended) == (130, True)
    assert b"stopped; what was said stays" in shown
    assert b"taken back: hello" in shown
    assert not set(shown) & (set(range(32)) - set(b"\r\n\t"))


@posix
def test_a_signal_stops_an_answer_in_a_pipe(endless: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """What was said until then is the answer; the next turn is answered too, and the file gets both."""
    target = tmp_path / "said.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "llmt", "generate", str(endless), "--chat", "-n", "9999", "--temperature", "0",
         "--output", str(target)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(2):
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.read(5) == b"\x1b" * 5
        process.send_signal(signal.SIGINT)
        while process.stdout.read(1) != b"\n":
            pass
    rest, said = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, b"")
    assert said.count(b"what was said stays") == 2
    kept = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [set(item["text"]) for item in kept] == [{"\x1b"}] * 2
    assert all(5 <= item["tokens"] < 9999 for item in kept)
