"""Every refusal: the right exit code, two lines, and nothing left behind."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmt.checkpoints.lock import output_lock


def refuse(result: Any, code: int, *words: str, problems: int = 1) -> None:
    """The command was refused with `code`: one line for each problem and one hint, and each word is said."""
    assert result.code == code, result.err
    lines = result.lines
    assert len(lines) == problems + 1, result.err
    assert all(line.startswith("error: ") for line in lines[:-1]), result.err
    assert lines[-1].startswith("hint: "), result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    for word in words:
        assert word in result.err, f"{word!r} is not in {result.err!r}"


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / "in.txt").write_bytes(content) and None


def _folder(path: Path) -> None:
    (path / "in.txt").mkdir()
    (path / "in.txt" / "picture.png").write_bytes(b"\x89PNG")


DATA = {
    "empty file": (_bytes(b""), ("in.txt",)),
    "whitespace only": (_bytes(b" \n\t\n  "), ("in.txt",)),
    "byte order mark only": (_bytes(b"\xef\xbb\xbf"), ("in.txt",)),
    "fewer tokens than one block": (_bytes(b"two words"), ("32",)),
    "invalid UTF-8": (_bytes(b"good text \xff\xfe and more " * 50), ("in.txt", "offset 10")),
    "a folder without text": (_folder, ("in.txt",)),
    "a missing file": (lambda path: None, ("in.txt", "no such file")),
}


@pytest.mark.parametrize("case", DATA)
def test_text_that_cannot_be_trained_on(
    inside: Any, tmp_path: Path, tiny: tuple[str, ...], listing_of: Any, case: str
) -> None:
    """Text that is missing, empty, undecodable or too short is exit 3, and no run is begun."""
    make, words = DATA[case]
    make(tmp_path)
    before = listing_of(tmp_path)
    refuse(inside("train", "quickstart", "--data", "in.txt", *tiny, "--max-steps", "2"), 3, *words)
    assert listing_of(tmp_path) == before


@pytest.mark.parametrize("case", ["empty file", "invalid UTF-8", "a folder without text", "a missing file"])
def test_text_that_no_tokenizer_learns_from(inside: Any, tmp_path: Path, listing_of: Any, case: str) -> None:
    """`tokenizer train` refuses the same texts, and writes no tokenizer."""
    make, words = DATA[case]
    make(tmp_path)
    before = listing_of(tmp_path)
    refuse(inside("tokenizer", "train", "in.txt"), 3, *words)
    assert listing_of(tmp_path) == before


CONFIG = {
    "unknown template": (["train", "quickstrat"], ("quickstrat", "did you mean quickstart?")),
    "unknown file": (["train", "mine.yaml"], ("mine.yaml", "no such file")),
    "unknown flag": (["train", "--learning-rat", "1"], ("--learning-rat", "llmt train --help")),
    "unknown command": (["trian"], ("trian", "llmt --help")),
    "no command": (["tokenizer"], ("llmt tokenizer --help",)),
    "missing argument": (["generate"], ("MODEL", "llmt generate --help")),
    "missing value": (["train", "--max-steps"], ("--max-steps",)),
    "unknown key": (["train", "--set", "training.learning_rat=1"], ("did you mean", "learning_rate")),
    "wrong type": (["train", "--learning-rate", "fast"], ("--learning-rate", "'fast'")),
    "out of range": (["train", "--warmup-ratio", "2"], ("--warmup-ratio",)),
    "unknown choice": (["train", "--optimizer", "magic"], ("--optimizer", "adamw")),
    "unknown device": (["train", "--device", "abacus"], ("--device", "cuda")),
    "two that exclude each other": (["train", "--resume", "--overwrite"], ("--resume", "--overwrite")),
    "unreadable prompt length": (["generate", "runs/x", "-n", "many"], ("--max-new-tokens", "'many'")),
    "zero batches": (["eval", "runs/x", "--batch-size", "0"], ("--batch-size",)),
    "unknown algorithm": (["tokenizer", "train", "--algo", "magic"], ("--algo", "wordpiece")),
    "unreadable size": (["convert", "x.pt", "--max-shard-size", "huge"], ("--max-shard-size", "huge")),
    "data in the place of CONFIG": (["train", "rows.jsonl"], ("rows.jsonl: is data", "--data rows.jsonl")),
    "an adapter's rank without one": (["train", "--lora-r", "4"], ("--lora-r", "--lora")),
    "rank zero": (["train", "--lora", "--lora-r", "0"], ("--lora-r", "greater than 0")),
    "a rank that the method has not": (["train", "--lora", "--lora-method", "ia3", "--lora-r", "4"], ("r:", "ia3")),
    "an adapter for PyTorch": (["train", "--lora", "--save-format", "pytorch"], ("save_format", "safetensors")),
    "a new token that is none": (["train", "--lora", "--added-tokens", " "], ("--added-tokens", "empty")),
    "misspelt command of convert": (["convert", "merge-lroa", "x"], ("merge-lroa", "merge-lora")),
}


@pytest.mark.parametrize("case", CONFIG)
def test_mistakes_on_the_command_line(inside: Any, tmp_path: Path, listing_of: Any, case: str) -> None:
    """A mistake in what was typed is exit 2, named as it was typed."""
    arguments, words = CONFIG[case]
    refuse(inside(*arguments), 2, *words)
    assert listing_of(tmp_path) == {}


def test_mistakes_in_a_file_are_told_with_their_place(inside: Any, tmp_path: Path) -> None:
    """All problems of a configuration file come at once, each with file, line and column."""
    (tmp_path / "mine.yaml").write_text("training:\n  learning_rat: 1\n  max_steps: soon\nseed: -1\n", encoding="utf-8")
    result = inside("train", "mine.yaml")
    refuse(result, 2, "mine.yaml:2:", "mine.yaml:3:", "mine.yaml:4:", "learning_rate", problems=3)


def test_an_unknown_variable_is_a_mistake(inside: Any) -> None:
    """`LLMT_*` that names nothing is exit 2 for every command that reads settings."""
    for command in (["train"], ["doctor"], ["generate", "x"], ["config", "show"]):
        refuse(inside(*command, env={"LLMT_TRAINING__MAX_STEP": "3"}), 2, "LLMT_TRAINING__MAX_STEP")


@pytest.mark.parametrize(
    "command", [["train", "quickstart"], ["eval", "runs/quickstart"], ["generate", "runs/quickstart"], ["doctor"]]
)
def test_a_device_that_is_not_here(inside: Any, finished: Any, command: list[str], listing_of: Any) -> None:
    """A named device that is absent is exit 9, never a silent run on the CPU."""
    import torch

    absent = "cuda" if not torch.cuda.is_available() else "mps"
    output = ["-o", "runs/other"] if command[0] == "train" else []
    before = listing_of(finished[0])
    result = inside(*command, "--device", absent, *output, cwd=finished[0])
    assert result.code == 9
    assert [line.split(":")[0] for line in result.lines] == ["error", "hint"]
    assert "cpu" in result.err or command == ["doctor"]
    assert listing_of(finished[0]) == before


def test_a_run_is_not_replaced_unasked(inside: Any, finished: Any, tiny: tuple[str, ...], listing_of: Any) -> None:
    """A second run into the same directory is exit 10, names both ways out, and what it has otherwise."""
    before = listing_of(finished[0])
    command = ("train", "quickstart", "--data", "text.txt", *tiny)
    result = inside(*command, cwd=finished[0])
    refuse(result, 10, "runs/quickstart", "a run of these settings", "--resume", "--overwrite")
    other = inside(*command, "--learning-rate", "0.5", "--seed", "9", "--save-steps", "7", cwd=finished[0])
    refuse(other, 10, "another run (", "training.learning_rate: 0.006 -> 0.5", "seed: 42 -> 9")
    assert "save_steps" not in other.err
    assert listing_of(finished[0]) == before


def test_a_run_that_is_being_written_is_left_alone(inside: Any, workplace: Path, tiny: tuple[str, ...]) -> None:
    """While one process writes a run, another is refused with exit 10, told who, whatever it asks for."""
    with output_lock(workplace / "runs" / "quickstart"):
        for option in ("--resume", "--overwrite"):
            arguments = ["quickstart", "--data", "text.txt", *tiny] if option == "--overwrite" else ["runs/quickstart"]
            result = inside("train", *arguments, option, cwd=workplace)
            refuse(result, 10, "in use by process", str(os.getpid()))
    assert (workplace / "runs" / "quickstart" / "model.safetensors").is_file()


def test_overwrite_leaves_what_is_no_run(inside: Any, tmp_path: Path, listing_of: Any) -> None:
    """`--overwrite` never empties a directory that llmt did not write."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("do not lose me", encoding="utf-8")
    before = listing_of(tmp_path)
    refuse(inside("train", "-o", "letters", "--overwrite"), 10, "letters")
    refuse(inside("train", "-o", "letters/dear.txt"), 10, "letters/dear.txt")
    refuse(inside("tokenizer", "train", "-o", "letters", "--overwrite"), 10, "letters")
    assert listing_of(tmp_path) == before


def test_overwrite_keeps_the_old_run_until_the_new_text_is_read(
    inside: Any, workplace: Path, tiny: tuple[str, ...], listing_of: Any
) -> None:
    """`--overwrite` with text that cannot be read leaves the run that stands there."""
    before = listing_of(workplace)
    refuse(inside("train", "quickstart", "--data", "no.txt", *tiny, "--overwrite", cwd=workplace), 3, "no.txt")
    assert listing_of(workplace) == before


def test_overwrite_refuses_to_remove_its_own_base(inside: Any, workplace: Path, listing_of: Any) -> None:
    """A run that goes on from a base may not replace that base."""
    before = listing_of(workplace)
    result = inside(
        "train", "quickstart", "--data", "text.txt", "--base", "runs/quickstart", "--overwrite", cwd=workplace
    )
    refuse(result, 10, "base")
    assert listing_of(workplace) == before


def test_a_folder_that_cannot_be_made(inside: Any, text_file: Path, tiny: tuple[str, ...], listing_of: Any) -> None:
    """An output directory below a file is exit 6 before any work."""
    before = listing_of(text_file.parent)
    arguments = ("train", "quickstart", "--data", "text.txt", *tiny, "-o", "text.txt/run")
    result = inside(*arguments, cwd=text_file.parent)
    refuse(result, 6, "text.txt")
    assert listing_of(text_file.parent) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind only an ordinary user on POSIX")
def test_a_read_only_folder(inside: Any, text_file: Path, tiny: tuple[str, ...]) -> None:
    """An output directory that may not be written is exit 6."""
    text_file.parent.chmod(0o555)
    try:
        result = inside("train", "quickstart", "--data", "text.txt", *tiny, cwd=text_file.parent)
    finally:
        text_file.parent.chmod(0o755)
    refuse(result, 6, "runs")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that refuses everybody")
def test_a_file_system_that_refuses(inside: Any, text_file: Path, tiny: tuple[str, ...]) -> None:
    """Where not even the administrator may write, it is exit 6."""
    result = inside("train", "quickstart", "--data", "text.txt", *tiny, "-o", "/proc/run", cwd=text_file.parent)
    refuse(result, 6, "/proc/run")
    refuse(inside("tokenizer", "train", "text.txt", "-o", "/proc/tokenizer", cwd=text_file.parent), 6, "/proc")


def test_a_disk_without_room(inside: Any, text_file: Path, tiny: tuple[str, ...], listing_of: Any) -> None:
    """A model whose checkpoints cannot fit is exit 6 (or 7, where memory is shorter) before anything is written."""
    before = listing_of(text_file.parent)
    huge = ("--hidden-size", "65536", "--intermediate-size", "262144", "--num-hidden-layers", "96")
    result = inside("train", "quickstart", "--data", "text.txt", *tiny, *huge, cwd=text_file.parent)
    assert result.code in (6, 7)
    refuse(result, result.code)
    assert listing_of(text_file.parent) == before


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from llmt.cli.app import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="the limit on file sizes is of POSIX")
def test_a_disk_that_fills_up(llmt: Any, text_file: Path, tiny: tuple[str, ...]) -> None:
    """A write that the disk refuses during the run is exit 6, and no half-written file keeps its final name."""
    arguments = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "2")
    result = llmt(*arguments, cwd=text_file.parent, program=("-c", LIMITED))
    assert result.code == 6, result.err
    assert [line.split(":")[0] for line in result.lines[-2:]] == ["error", "hint"]
    left = [path.name for path in (text_file.parent / "runs").rglob("*")]
    assert not any(name.startswith("checkpoint-") or name.endswith(".safetensors") for name in left), left


MISSING = {
    "generate": (["generate", "runs/none"], 4, ("runs/none", "runs/quickstart")),
    "eval": (["eval", "runs/none"], 4, ("runs/none", "runs/quickstart")),
    "eval of foreign text": (["eval", "runs/quickstart", "--data", "none.txt"], 3, ("none.txt",)),
    "convert": (["convert", "./ckpt"], 4, ("ckpt", "runs/quickstart")),
    "merge-lora": (["convert", "merge-lora", "runs/none"], 4, ("runs/none",)),
    "an adapter": (["generate", "runs/quickstart", "--adapter", "runs/none"], 4, ("runs/none",)),
    "a tokenizer": (["tokenizer", "inspect", "./none"], 4, ("none",)),
    "a tokenizer on the hub": (["tokenizer", "inspect", "none"], 6, ("none",)),
    "a base": (["train", "quickstart", "--base", "runs/none", "-o", "x"], 4, ("runs/none",)),
    "a resume": (["train", "quickstart", "--resume", "-o", "x"], 4, ("x", "llmt train")),
    "prompts": (["generate", "runs/quickstart", "--prompts-file", "none.txt"], 3, ("none.txt",)),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_not_there(inside: Any, finished: Any, listing_of: Any, case: str) -> None:
    """A missing model is exit 4 and names what there is; missing text is exit 3."""
    arguments, code, words = MISSING[case]
    before = listing_of(finished[0])
    refuse(inside(*arguments, cwd=finished[0]), code, *words)
    assert listing_of(finished[0]) == before


def test_pytorch_files_without_a_configuration(inside: Any, workplace: Path) -> None:
    """Weights that nothing describes, and a file where a model is asked for, are exit 4 and say what is missing."""
    import torch

    (workplace / "old").mkdir()
    torch.save({"w": torch.ones(2)}, workplace / "old" / "pytorch_model.bin")
    refuse(inside("generate", "old", cwd=workplace), 4, "no config.json that describes them")
    refuse(inside("generate", "old/pytorch_model.bin", cwd=workplace), 4, "name old, or convert it")


def test_a_tokenizer_that_does_not_fit(inside: Any, workplace: Path) -> None:
    """A tokenizer with more ids than the model has is exit 5."""
    run = workplace / "runs" / "quickstart"
    made = inside("tokenizer", "train", "text.txt", "--vocab-size", "400", "-o", "big", cwd=workplace)
    assert made.code == 0, made.err
    (run / "MANIFEST.json").unlink()
    (run / "config.yaml").unlink()
    shutil.copy(workplace / "big" / "tokenizer.json", run / "tokenizer.json")
    for command in (["eval", "runs/quickstart", "--data", "text.txt"], ["generate", "runs/quickstart"]):
        result = inside(*command, cwd=workplace)
        refuse(result, 5, "tokenizer")
    arguments = ("train", "quickstart", "--data", "text.txt", "--base", "runs/quickstart", "--block-size", "32")
    refuse(inside(*arguments, "-o", "other", cwd=workplace), 5, "tokenizer")
    refuse(inside(*arguments, "--tokenizer", "big", "-o", "other", cwd=workplace), 2, "the base brings its own")


def test_a_resume_with_other_settings(inside: Any, finished: Any, listing_of: Any) -> None:
    """A resume that would compute something else is exit 5 and names what differs."""
    before = listing_of(finished[0])
    result = inside("train", "runs/quickstart", "--resume", "--learning-rate", "0.5", cwd=finished[0])
    refuse(result, 5, "training.learning_rate", "0.5")
    assert listing_of(finished[0]) == before


def test_a_resume_with_other_text(inside: Any, workplace: Path) -> None:
    """A resume on text that changed is exit 5."""
    with (workplace / "text.txt").open("a", encoding="utf-8") as file:
        file.write("\n\na new last paragraph of the sea")
    result = inside("train", "runs/quickstart", "--resume", "--max-steps", "20", cwd=workplace)
    assert result.code == 5
    assert [line.split(":")[0] for line in result.lines[-2:]] == ["error", "hint"]
    assert "text" in result.lines[-2]


def test_a_second_process_on_a_live_run(environment: dict[str, str], inside: Any, text_file: Path, tiny: Any) -> None:
    """While a training process lives, a second one is refused with its number; after its end the run is free."""
    where = text_file.parent
    arguments = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "100000", "--save-steps", "20")
    first = subprocess.Popen(
        [sys.executable, "-m", "llmt", *arguments], cwd=where, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(where.glob("runs/quickstart/checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        refuse(inside("train", "runs/quickstart", "--resume", cwd=where), 10, str(first.pid))
    finally:
        first.kill()
        first.wait()
    resumed = inside("train", "runs/quickstart", "--resume", "--max-steps", "1", "--plan", cwd=where)
    assert resumed.code == 0, resumed.err
