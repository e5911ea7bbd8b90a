"""`--resume` in all its forms, and what looks after checkpoints."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


def _weights(directory: Path) -> bytes:
    return (directory / "runs" / "quickstart" / "model.safetensors").read_bytes()


def _content(directory: Path) -> dict[Path, bytes]:
    """Every file, but for who holds the directory."""
    found = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {path: path.read_bytes() for path in found}


@pytest.fixture
def begun(inside: Any, text_file: Path, tiny: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """A directory with a run of 12 steps that keeps all checkpoints, and the command line that began it."""
    command = (
        "train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "12", "--save-steps", "4",
        "--eval-strategy", "no", "--save-total-limit", "9",
    )  # fmt: skip
    result = inside(*command, cwd=text_file.parent)
    assert result.code == 0, result.err
    return text_file.parent, command


def test_the_same_command_again(inside: Any, text_file: Path, tiny: tuple[str, ...]) -> None:
    """`--resume auto` begins a run, goes on with it, and finishes what is finished: always the same command."""
    where = text_file.parent
    command = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "8", "--save-steps", "4")
    first = inside(*command, "--resume", "auto", cwd=where)
    assert first.code == 0, first.err
    assert "resuming" not in first.err
    weights = _weights(where)
    again = inside(*command, "--resume", "auto", cwd=where)
    assert again.code == 0, again.err
    assert "resuming at step 8 of 8" in again.err
    assert _weights(where) == weights
    longer = inside(*command[:-4], "--max-steps", "10", "--resume=auto", cwd=where)
    assert longer.code == 0, longer.err
    assert "resuming at step 8 of 10" in longer.err


def test_the_same_command_with_a_file_of_ones_own(inside: Any, text_file: Path) -> None:
    """Also where it is called config.yaml, as the file of a run is."""
    where = text_file.parent
    (where / "config.yaml").write_text(
        "name: mine\ntemplate: quickstart\ndata: {sources: [text.txt], block_size: 32}\ntokenizer: {algo: byte}\n"
        "model: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2}\n"
        "training: {max_steps: 6, save_steps: 3, compile: never, precision: fp32}\nlogging: {sample_tokens: 0}\n"
    )
    for expected in ("", "resuming at step 6 of 6"):
        result = inside("train", "config.yaml", "--resume", "auto", cwd=where)
        assert result.code == 0, result.err
        assert expected in result.err


@pytest.mark.parametrize("form", [
    ("runs/quickstart", "--resume"), ("--resume", "runs/quickstart"), ("--resume", "runs/quickstart/checkpoint-4"),
    ("runs/quickstart", "--resume", "runs/quickstart/checkpoint-8"), ("runs/quickstart", "--resume", "--quiet"),
])  # fmt: skip
def test_forms_of_resume(inside: Any, begun: tuple[Path, tuple[str, ...]], form: tuple[str, ...]) -> None:
    """A run or a checkpoint, before or after the option; the end is the same weights, and nothing is deleted."""
    where = begun[0]
    weights = _weights(where)
    before = {path.name for path in (where / "runs/quickstart").glob("checkpoint-*")}
    result = inside("train", *form, cwd=where)
    assert result.code == 0, result.err
    assert _weights(where) == weights
    aside = [path.name.split("-")[2] for path in (where / "runs/quickstart").glob(".later-*")]
    named = next((int(part.rpartition("-")[2]) for part in form if "checkpoint-" in part), 12)
    assert sorted(map(int, aside)) == [step for step in (4, 8, 12) if step > named]
    assert before == {path.name for path in (where / "runs/quickstart").glob("checkpoint-*")}


@pytest.mark.parametrize(("form", "code", "says"), [
    (("--resume", "runs/other"), 4, "is not there"), (("--resume", "text.txt"), 4, "is no run"),
    (("--resume", "runs/quickstart/checkpoint-5"), 4, "is not there"),
    (("quickstart", "--resume", "runs/quickstart/checkpoint-4"), 2, "another run"),
    (("runs/quickstart", "--resume", "--overwrite"), 2, "--overwrite"),
    (("runs/quickstart", "--verify-resume", "--overwrite"), 2, "--overwrite"),
    (("runs/quickstart", "--resume", "--threads", "2", "--strict-resume"), 5, "threads 1 -> 2"),
    (("runs/quickstart", "--resume", "--max-time", "1h", "--strict-resume"), 5, "clock"),
    (("runs/quickstart", "--strict-resume"), 2, "--strict-resume: is about a resume"),
    (("runs/quickstart", "--allow-data-change"), 2, "--allow-data-change: is about a resume"),
    (("--resume", "runs/quickstart/checkpoint-4", "--threads", "2", "--strict-resume"), 5, "threads 1 -> 2"),
])  # fmt: skip
def test_resumes_that_cannot_be(
    inside: Any, begun: tuple[Path, tuple[str, ...]], form: tuple[str, ...], code: int, says: str
) -> None:
    """Each is refused in two lines, with what to type, and nothing of the run is touched."""
    before = _content(begun[0] / "runs")
    result = inside("train", *form, cwd=begun[0])
    assert _content(begun[0] / "runs") == before
    assert result.code == code, result.err
    assert says in result.lines[-2]
    assert [line.split(":")[0] for line in result.lines[-2:]] == ["error", "hint"]


def test_a_strict_resume_that_is_exact(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """Where nothing differs, strictness refuses nothing."""
    result = inside("train", "--resume", "runs/quickstart/checkpoint-8", "--strict-resume", cwd=begun[0])
    assert result.code == 0, result.err
    longer = inside("train", "runs/quickstart", "--resume", "--strict-resume", "--max-steps", "14", cwd=begun[0])
    assert longer.code == 5
    assert "steps of the schedule 12 -> 14" in longer.err


def test_a_resume_is_verified(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """The last interval is trained again and said to be equal; the run stays as it is."""
    weights = _weights(begun[0])
    result = inside("train", "runs/quickstart", "--verify-resume", cwd=begun[0])
    assert result.code == 0, result.err
    assert result.out.startswith("steps 8 to 12 replayed: ")
    assert "tensors equal, sha256 " in result.out
    values = json.loads(inside("train", "runs/quickstart", "--verify-resume", "--json", cwd=begun[0]).out)
    assert (values["from"], values["to"]) == (8, 12)
    assert _weights(begun[0]) == weights


def test_checkpoints_are_listed_and_verified(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """Steps and sizes; a flipped bit is found by name, and nothing is changed by looking."""
    where, run = begun[0], begun[0] / "runs" / "quickstart"
    listed = inside("checkpoints", "list", "runs/quickstart", cwd=where)
    assert listed.code == 0, listed.err
    assert [line.split()[0] for line in listed.out.splitlines()] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    values = json.loads(inside("checkpoints", "list", "runs/quickstart", "--json", cwd=where).out)
    assert [one["step"] for one in values["checkpoints"]] == [4, 8, 12]
    whole = inside("checkpoints", "verify", "runs/quickstart", cwd=where)
    assert whole.code == 0
    assert whole.out.count("whole") == 3
    data = bytearray((run / "checkpoint-8" / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "checkpoint-8" / "optimizer.safetensors").write_bytes(data)
    found = inside("checkpoints", "verify", "runs/quickstart", cwd=where)
    assert found.code == 4
    assert "checkpoint-8: damaged: optimizer.safetensors sha256 differs" in found.lines[-2]
    assert "checkpoint-12" in found.lines[-1]
    assert inside("checkpoints", "verify", "runs/quickstart/checkpoint-4", cwd=where).code == 0
    as_json = inside("checkpoints", "verify", "runs/quickstart", "--json", cwd=where)
    assert as_json.code == 4
    assert [bool(one["problems"]) for one in json.loads(as_json.out)["checkpoints"]] == [False, True, False]
    assert (run / "checkpoint-8").is_dir()
    for bad in ("text.txt", "nowhere", "."):
        refused = inside("checkpoints", "verify", bad, cwd=where)
        assert refused.code == 4
        assert refused.lines[-1].startswith("hint: ")


def test_changed_text_goes_on_where_that_is_said(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """Without the option it is exit 5 and the hint names it; with it the run says what it does."""
    where = begun[0]
    with (where / "text.txt").open("a", encoding="utf-8") as file:
        file.write("\n\nanother paragraph of the sea and the wind and the rain")
    refused = inside("train", "runs/quickstart", "--resume", "--max-steps", "14", cwd=where)
    assert refused.code == 5
    assert "--allow-data-change" in refused.lines[-1]
    allowed = inside("train", "runs/quickstart", "--resume", "--max-steps", "14", "--allow-data-change", cwd=where)
    assert allowed.code == 0, allowed.err
    assert "the training text changed since step 12" in allowed.err


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory and sends SIGKILL")
def test_a_killed_run_is_spoken_of(environment: dict[str, str], inside: Any, text_file: Path, tiny: Any) -> None:
    """The process that goes on says that the one before it was killed; the one after that has nothing to say."""
    where = text_file.parent
    arguments = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "100000", "--save-steps", "20")
    first = subprocess.Popen(
        [sys.executable, "-m", "llmt", *arguments], cwd=where, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(where.glob("runs/quickstart/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.kill()
    first.wait()
    said = f"note: process {first.pid} on "
    resumed = inside("train", "runs/quickstart", "--resume", "--max-steps", "1", cwd=where)
    assert resumed.code == 0, resumed.err
    assert said in resumed.err
    assert "was killed" in resumed.err
    assert said not in inside("train", "runs/quickstart", "--resume", "--max-steps", "1", cwd=where).err


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
@pytest.mark.parametrize("trial", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_that_runs_out_in_a_step(
    environment: dict[str, str], text_file: Path, tiny: tuple[str, ...], trial: bool
) -> None:
    """Exit 7 and the settings that would fit; with the trial the run finds them by itself, for the same step."""
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2_500_000_000, 2_500_000_000))

    arguments = ("train", "quickstart", "--data", "text.txt", *tiny, "--max-steps", "1", "--eval-strategy", "no",
                 "--per-device-train-batch-size", "32768", "--sample-tokens", "0")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "llmt", *arguments, *(("--auto-micro-batch",) if trial else ())],
        cwd=text_file.parent, env=environment, capture_output=True, text=True, preexec_fn=limited, timeout=200,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    if not trial:
        assert done.returncode == 7, done.stderr
        assert lines[-2].startswith("error: memory ran out in step 1: 32768 sequences at once")
        assert "--per-device-train-batch-size 16384 --gradient-accumulation-steps 2" in lines[-1]
        return
    assert done.returncode == 0, done.stderr
    plan = json.loads((text_file.parent / "runs/quickstart/plan.json").read_text())
    assert 1 < plan["micro_batch"] < 32768
    assert plan["micro_batch"] * plan["accumulation"] == 32768


@pytest.mark.parametrize("flag", ["--verify-resume", "--strict-resume"])
def test_looking_sets_nothing_aside(inside: Any, begun: tuple[Path, tuple[str, ...]], flag: str) -> None:
    """A damaged checkpoint is said and left where it is; a strict resume takes no other one."""
    run = begun[0] / "runs" / "quickstart"
    data = bytearray((run / "checkpoint-12/model.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "checkpoint-12/model.safetensors").write_bytes(data)
    before = _content(run)
    resume = ("--resume",) if flag == "--strict-resume" else ()
    result = inside("train", "runs/quickstart", *resume, flag, cwd=begun[0])
    assert result.code == (4 if resume else 0), result.err
    assert "checkpoint-12 is damaged" in result.err
    assert _content(run) == before


def test_a_checkpoint_that_was_about_to_go_is_brought_back(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """Where a process died while it removed the last whole one, a resume goes on from it."""
    run = begun[0] / "runs" / "quickstart"
    for step in (4, 8):
        (run / f"checkpoint-{step}").rename(begun[0] / f"gone-{step}")
    (run / "checkpoint-12").rename(run / ".del-checkpoint-12-ab")
    result = inside("train", "runs/quickstart", "--resume", "--max-steps", "13", cwd=begun[0])
    assert result.code == 0, result.err
    assert "resuming at step 12 of 13" in result.err


def test_shortened_blocks_are_the_same_command(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """A run whose blocks were cut to the context of its base goes on by the command that began it."""
    command = (
        "train", "quickstart", "--base", "runs/quickstart", "--data", "text.txt", "--block-size", "4096", "-o", "more",
        "--max-steps", "2", "--compile", "never", "--resume", "auto", "--sample-tokens", "0", "--threads", "1",
    )  # fmt: skip
    for said in ("4096 was asked", "resuming at step 2 of 2"):
        result = inside(*command, cwd=begun[0])
        assert result.code == 0, result.err
        assert said in result.err


def test_a_plan_counts_the_processes(inside: Any, text_file: Path, tiny: tuple[str, ...]) -> None:
    """Four processes take four times the sequences of a step, also where the plan alone is wanted."""
    command = ("train", "quickstart", "--data", "text.txt", *tiny, "--plan", "--num-processes")
    plans = [json.loads(inside(*command, number, "--json", cwd=text_file.parent).out) for number in ("1", "4")]
    steps = [next(line for line in plan["lines"] if line["name"] == "steps")["reason"] for plan in plans]
    read = [int(reason.split("; ")[1].split()[0].replace(",", "")) for reason in steps]
    assert read[1] == 4 * read[0]


def test_a_base_that_is_gone(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """A whole model that goes on is in its own checkpoints; the end is that of a run whose base is still there."""
    where, _ = begun
    command = (
        "train", "quickstart", "--base", "base", "--data", "text.txt", "--block-size", "16", "--threads", "1",
        "--precision", "fp32", "--compile", "never", "--max-steps", "6", "--save-steps", "3", "--eval-strategy", "no",
        "--device", "cpu", "--sample-tokens", "0",
    )  # fmt: skip
    (where / "runs" / "quickstart").rename(where / "base")
    whole = inside(*command, "-o", "whole", cwd=where)
    assert whole.code == 0, whole.err
    (where / "whole").rename(where / "parts")
    weights = (where / "parts" / "model.safetensors").read_bytes()
    damaged = where / "parts" / "checkpoint-6" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    shutil.rmtree(where / "base")
    resumed = inside("train", "parts", "--resume", cwd=where)
    assert resumed.code == 0, resumed.err
    assert "not bit for bit" not in resumed.err
    assert (where / "parts" / "model.safetensors").read_bytes() == weights
    assert f"base: {(where / 'base').resolve()}" in (where / "parts" / "config.yaml").read_text()


def test_another_base_than_the_run_began_with(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """Its weights would not be read, and it may compute otherwise: exit code 5 names what differs."""
    where, command = begun
    shutil.copytree(where / "runs" / "quickstart" / "checkpoint-12", where / "other")
    config = where / "other" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "rms_norm_eps": 0.5}))
    (where / "other" / "MANIFEST.json").unlink()
    first = inside(*command[:2], "--base", "runs/quickstart", *command[2:4], "--max-steps", "4", "--save-steps", "2",
                   "--block-size", "16", "--device", "cpu", "-o", "more", cwd=where)  # fmt: skip
    assert first.code == 0, first.err
    other = inside("train", "more", "--resume", "--base", "other", cwd=where)
    assert other.code == 5, other.err
    assert "rms_norm_eps" in other.err


def test_a_trial_is_not_exact(inside: Any, begun: tuple[Path, tuple[str, ...]]) -> None:
    """Where other passes may be found, strictness refuses before the trial."""
    refused = inside(
        "train", "runs/quickstart", "--resume", "--strict-resume", "--max-steps", "13", "--set",
        "training.auto_micro_batch=true", cwd=begun[0],
    )  # fmt: skip
    assert refused.code == 5, refused.err
    assert "auto_micro_batch" in refused.err
